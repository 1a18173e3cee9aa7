// What a client wants to be known of it: models and regions, declared and registered on every connection.
#include <algorithm>
#include <optional>
#include <utility>

#include "client/client_impl.h"
#include "client/connection/wait.h"
#include "client/region/region_impl.h"
#include "proto/base/fault_point.h"

namespace kvm {
namespace {

constexpr std::chrono::milliseconds kFirstPause{10}, kLastPause{160};

// `announce_again`: also what this connection has been told of already.
kvmwire::ClientMessage Declaration(const ModelSpec& spec, bool announce_again) {
  kvmwire::ClientMessage message;
  message.mutable_declare_model()->set_spec(spec.Canonical());
  message.mutable_declare_model()->set_announce_again(announce_again);
  return message;
}

}  // namespace

kvmwire::ClientMessage Unregistration(std::uint32_t row, std::uint32_t region_epoch, std::uint32_t ack_timeout_ms) {
  kvmwire::ClientMessage message;
  kvmwire::UnregisterRegion& request = *message.mutable_unregister_region();
  request.set_region(row);
  request.set_region_epoch(region_epoch);
  request.set_ack_timeout_ms(ack_timeout_ms);
  return message;
}

std::uint32_t AckTimeoutMs(Deadline deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(left - left / 10, 1, 60'000));
}

void Client::Impl::Redeclare() {
  for (const Model& model : Models()) link.Request(Declaration(model.spec, true), {}, [](const Result<Answer>&) {});
}

Result<Model> Client::Impl::DeclareModel(const ModelSpec& spec, Deadline deadline) {
  if (Status valid = spec.Validate(); !valid) return valid.error();
  Model model{spec, spec.ComputeFingerprint()};
  const auto same = [&](const Model& other) { return other.fingerprint == model.fingerprint; };
  {
    std::lock_guard lock(mutex_);
    if (std::none_of(models_.begin(), models_.end(), same)) models_.push_back(model);
  }
  if (!link.connected()) return model;  // declared on connecting
  const Result<Answer> reply = link.Call(Declaration(spec, false), {}, deadline);
  if (!reply && reply.error().code != Errc::kUnavailable) {
    if (reply.error().code != Errc::kDeadlineExceeded) {
      std::lock_guard lock(mutex_);
      std::erase_if(models_, same);
    }
    return reply.error();
  }
  // The announcements came before the reply; kCancelled: the client is being closed.
  if (Status mapped = mapper.Drain(deadline); !mapped) return mapped.error();
  return model;
}

Result<std::size_t> Client::Impl::OpenDevice(const DeviceUuid& device, Deadline deadline) {
  const std::size_t before = devices.size();
  Result<std::size_t> index = devices.Open(device);
  if (!index || *index < before || !link.connected()) return index;
  for (const Model& model : Models()) {
    const Result<Answer> reply = link.Call(Declaration(model.spec, true), {}, deadline);
    if (!reply && reply.error().code == Errc::kDeadlineExceeded) return reply.error();
  }
  if (Status mapped = mapper.Drain(deadline); !mapped) return mapped.error();
  return index;
}

Result<std::shared_ptr<Region>> Client::Impl::AllocateRegion(const Model& model, RegionOptions region, Deadline deadline) {
  const Result<std::size_t> device = OpenDevice(region.device, deadline);
  if (!device) return device.error();
  if (Status sound = Region::Impl::Complete(region); !sound) return sound.error();
  bool gave_way = false;  // memory of dead workers has been given up for this
  const auto allocate = [&] {
    return Region::Impl::Allocate(model, region, devices, *device, GrantInPlaceOfTheDead(model, region, deadline, gave_way));
  };
  Result<std::shared_ptr<Region::Impl>> made = allocate();
  const auto exhausted = [&] { return !made && made.error().code == Errc::kResourceExhausted && link.connected(); };
  if (exhausted()) {
    // What dead workers have left on this device goes first.
    const Result<ReclaimedMemory> reclaimed = ReclaimOrphans({.device = region.device, .name = {}, .min_age = {}}, deadline);
    gave_way = gave_way || (reclaimed && reclaimed->regions > 0);
    if (gave_way) made = allocate();
  }
  // The last descriptor may be a service manager's, which lets go of it in its own time.
  for (auto pause = kFirstPause; exhausted() && gave_way && pause <= kLastPause && After(pause) < deadline; pause *= 2) {
    if (!Sleep(pause)) break;
    made = allocate();
  }
  if (!made) return made.error();
  KVM_FAULT_POINT(client_memory_made);
  return AddRegion(std::move(*made), deadline);
}

Result<std::shared_ptr<Region>> Client::Impl::RegisterRegion(const Model& model, RegionOptions region,
                                                             std::span<const DeviceRange> segments, Deadline deadline) {
  if (segments.empty()) return MakeError(Errc::kInvalidArgument, "region: no segments given");
  if (region.device == kHostMemory) {
    const Result<DeviceUuid> device = DeviceOf(segments[0].data);
    if (!device) return device.error();
    region.device = *device;
  }
  const Result<std::size_t> device = OpenDevice(region.device, deadline);
  if (!device) return device.error();
  Result<std::shared_ptr<Region::Impl>> made =
      Region::Impl::Register(model, region, devices, *device, segments, GrantUntil(region, deadline));
  if (!made) return made.error();
  return AddRegion(std::move(*made), deadline);
}

Result<std::shared_ptr<Region>> Client::Impl::AddRegion(std::shared_ptr<Region::Impl> region, Deadline deadline) {
  region->client = weak_from_this();
  {
    std::lock_guard lock(mutex_);
    regions_.push_back(region);
  }
  struct Waiting {
    std::mutex mutex;
    std::condition_variable done;
    std::optional<Status> status;
  };
  if (link.connected()) {
    auto waiting = std::make_shared<Waiting>();
    RequestRegistration(region, [waiting](const Result<Answer>& reply) {
      std::lock_guard lock(waiting->mutex);
      waiting->status = reply ? Status() : Status(reply.error());
      waiting->done.notify_all();
    });
    std::unique_lock lock(waiting->mutex);
    Status status = MakeError(Errc::kDeadlineExceeded, "kvmd did not register region " + region->options.name + " in time");
    if (WaitUntil(waiting->done, lock, deadline, [&] { return waiting->status.has_value(); })) status = *waiting->status;
    lock.unlock();
    // A lost connection is not an error: the region is registered on reconnecting.
    if (!status && status.error().code != Errc::kUnavailable) {
      if (const auto unregistration = LetGo(*region, After(std::chrono::milliseconds(0)))) link.Post(*unregistration);
      return status.error();
    }
  }
  return std::make_shared<Region>(std::move(region));
}

// Asked for by AllocateRegion and by every new connection; when both come together, one request serves both.
void Client::Impl::RequestRegistration(const std::shared_ptr<Region::Impl>& region, const Reply& done) {
  bool registered = false, closed = false;
  {
    std::lock_guard lock(region->mutex);
    registered = region->registered;
    closed = region->closed;
    if (!registered && !closed) {
      if (done) region->registration_waiters.push_back(done);
      if (std::exchange(region->registering, true)) return;
    }
  }
  if (registered || closed) {
    if (done) done(closed ? Result<Answer>(MakeError(Errc::kCancelled, "region " + region->options.name + " is closed")) : Answer());
    return;
  }
  kvmwire::ClientMessage message;
  *message.mutable_register_region()->mutable_region() = region->Descriptor();
  std::vector<int> fds{region->generation_memory.fd()};
  for (const SegmentHandle& handle : region->memory->handles()) {
    if (handle.fd) fds.push_back(handle.fd.get());
  }
  link.Request(std::move(message), fds, [this, region](const Result<Answer>& reply) {
    if (reply) {
      OnRegistered(region, reply->message.register_region_reply());
    } else {
      std::lock_guard lock(region->mutex);
      region->refusal = reply.error();
    }
    std::vector<Reply> waiters;
    {
      std::lock_guard lock(region->mutex);
      region->registering = false;
      waiters.swap(region->registration_waiters);
    }
    for (const Reply& waiter : waiters) waiter(reply ? Result<Answer>(Answer()) : reply.error());
  });
}

// A region that kvmd refused on a reconnection for want of something is asked for again: of tables that were full, or of
// descriptors, there may be some again.
void Client::Impl::RegisterRefused() {
  constexpr std::chrono::milliseconds kFirst{1000}, kLongest{60'000};
  if (std::chrono::steady_clock::now() < refused_until_) return;
  bool refused = false;
  for (const std::shared_ptr<Region::Impl>& region : Regions()) {
    {
      std::lock_guard lock(region->mutex);
      if (region->registered || region->registering || region->closed || region->refusal.code != Errc::kResourceExhausted) continue;
    }
    refused = true;
    RequestRegistration(region, nullptr);
  }
  refused_pause_ = refused ? std::clamp(2 * refused_pause_, kFirst, kLongest) : std::chrono::milliseconds(0);
  refused_until_ = After(refused_pause_);
}

void Client::Impl::OnRegistered(const std::shared_ptr<Region::Impl>& region, const kvmwire::RegisterRegionReply& registered) {
  KVM_FAULT_POINT(client_registered);
  peers.Add(connection_, registered.region(), registered.region_epoch(), region->own_mapping);
  bool closed = false;
  {
    std::lock_guard lock(region->mutex);
    region->row = registered.region();
    region->region_epoch = registered.region_epoch();
    region->registered = region->known_to_kvmd = true;
    region->republish_from = 0;  // what was published while it was not
    region->refusal = Error{};
    closed = region->closed;
    if (!closed) region->PumpLocked(*this);
  }
  if (!closed) return;
  if (const auto unregistration = LetGo(*region, After(std::chrono::milliseconds(0)))) link.Post(*unregistration);
}

std::optional<kvmwire::ClientMessage> Client::Impl::LetGo(Region::Impl& region, Deadline deadline) {
  region.End();
  KVM_FAULT_POINT(client_blocks_ended);
  peers.RemoveByIdentity(region.Identity());
  {
    std::lock_guard lock(mutex_);
    std::erase_if(regions_, [&](const std::weak_ptr<Region::Impl>& other) { return other.lock().get() == &region; });
  }
  // Its owner may free the memory afterwards.
  region.Close(deadline);
  offloader.Forget(region, deadline);
  std::lock_guard lock(region.mutex);
  if (!std::exchange(region.registered, false)) return std::nullopt;
  return Unregistration(region.row, region.region_epoch);
}

Status Client::Impl::Unregister(Region::Impl& region, Deadline deadline) {
  std::optional<kvmwire::ClientMessage> message = LetGo(region, deadline);
  if (!message) {
    std::lock_guard lock(region.mutex);
    if (!std::exchange(region.known_to_kvmd, false)) return {};
    return MakeError(Errc::kUnavailable, "unregister: kvmd is away, so importers of region " + region.options.name + " could not be told");
  }
  KVM_FAULT_POINT(client_unregistering);
  message->mutable_unregister_region()->set_ack_timeout_ms(AckTimeoutMs(deadline));
  const Result<Answer> reply = link.Call(std::move(*message), {}, deadline);
  std::lock_guard lock(region.mutex);
  region.known_to_kvmd = false;
  if (reply) return {};
  if (reply.error().code != Errc::kNotFound) return reply.error();
  return MakeError(Errc::kUnavailable,
                   "unregister: kvmd has restarted meanwhile, importers of region " + region.options.name + " could not be told");
}

void Client::Impl::UnregisterAll() {
  const Deadline deadline = After(options.timeout);
  struct Waiting {
    std::mutex mutex;
    std::condition_variable answered;
    std::size_t left = 0;
  };
  auto waiting = std::make_shared<Waiting>();
  for (const std::shared_ptr<Region::Impl>& region : Regions()) {
    region->End();
    region->Close(deadline);
    kvmwire::ClientMessage message;
    {
      std::lock_guard lock(region->mutex);
      if (!std::exchange(region->registered, false)) continue;
      message = Unregistration(region->row, region->region_epoch, AckTimeoutMs(deadline));
    }
    if (region->memory->kind() != layout::HandleKind::kCudaIpc) {
      link.Post(message);
      continue;
    }
    {
      std::lock_guard lock(waiting->mutex);
      ++waiting->left;
    }
    link.Request(std::move(message), {}, [waiting](const Result<Answer>&) {
      std::lock_guard lock(waiting->mutex);
      --waiting->left;
      waiting->answered.notify_all();
    });
  }
  std::unique_lock lock(waiting->mutex);
  WaitUntil(waiting->answered, lock, deadline, [&] { return waiting->left == 0; });
}

}  // namespace kvm
