#include "client/region/registrar.h"

#include <algorithm>
#include <utility>

#include "client/connection/wait.h"
#include "client/region/region_messages.h"
#include "proto/base/fault_point.h"

namespace kvm {
namespace {

// An event on the link's thread that a caller waits for.
struct Announcement {
  Mutex mutex;
  std::condition_variable changed;
  std::optional<Status> status KVM_GUARDED_BY(mutex);

  void Say(Status what) {
    MutexLock lock(mutex);
    status = std::move(what);
    changed.notify_all();
  }
};

}  // namespace

std::vector<std::shared_ptr<Region::Impl>> Registrar::Regions() const {
  std::vector<std::shared_ptr<Region::Impl>> out;
  MutexLock lock(mutex_);
  for (const auto& weak : regions_) {
    if (auto region = weak.lock()) out.push_back(std::move(region));
  }
  return out;
}

void Registrar::AddToList(const std::shared_ptr<Region::Impl>& region) {
  MutexLock lock(mutex_);
  regions_.push_back(region);
}

bool Registrar::Has(const std::string& name) const {
  const std::vector<std::shared_ptr<Region::Impl>> regions = Regions();
  return std::any_of(regions.begin(), regions.end(), [&](const auto& region) { return region->options.name == name; });
}

// ---- the link's thread --------------------------------------------------------------------------

void Registrar::Connected(std::uint64_t connection) {
  connection_ = connection;
  for (const std::shared_ptr<Region::Impl>& region : Regions()) Request(region, nullptr);
}

void Registrar::Disconnected() {
  for (const std::shared_ptr<Region::Impl>& region : Regions()) region->ConnectionEnded();
  window.ConnectionEnded();
}

void Registrar::Tick() {
  {
    MutexLock lock(mutex_);
    std::erase_if(regions_, [](const std::weak_ptr<Region::Impl>& region) { return region.expired(); });
  }
  RequestRefused();
  Pump();
}

void Registrar::Answered(const kvmwire::PublishAck& ack) {
  const bool room = window.Answered(ack.sequence());
  stats.publishes_refused.fetch_add(ack.refused_full() + ack.refused_replicas() + ack.refused_stale() + ack.refused_invalid(),
                                    std::memory_order_relaxed);
  if (room) Pump();
  window.Wake();
}

void Registrar::Pump() {
  for (const std::shared_ptr<Region::Impl>& region : Regions()) region->Pump(*this);
}

// Requests registration again for regions that kvmd refused on a reconnect for lack of a resource:
// tables may have room again, and descriptors may be free. The pause between two requests doubles.
void Registrar::RequestRefused() {
  constexpr std::chrono::milliseconds kFirst{1000}, kLongest{60'000};
  if (std::chrono::steady_clock::now() < refused_until_) return;
  bool refused = false;
  for (const std::shared_ptr<Region::Impl>& region : Regions()) {
    if (!region->IsWorthAsking()) continue;
    refused = true;
    Request(region, nullptr);
  }
  refused_pause_ = refused ? std::clamp(2 * refused_pause_, kFirst, kLongest) : std::chrono::milliseconds(0);
  refused_until_ = After(refused_pause_);
}

void Registrar::OnRegistered(const std::shared_ptr<Region::Impl>& region, const kvmwire::RegisterRegionReply& registered) {
  KVM_FAULT_POINT(client_registered);
  peers_.Add(connection_, registered.region(), registered.region_epoch(), region->own_mapping);
  if (!region->Accepted(*this, {registered.region(), registered.region_epoch()})) LetGoAtOnce(*region);
}

// Runs on the link's thread, so that either this function sees a reconnect, or the reconnect sees
// the region.
void Registrar::OnAdopted(const std::shared_ptr<Region::Impl>& region, std::uint64_t connection) {
  AddToList(region);
  if (connection_ == connection && link.connected()) {
    const RegionRow row = region->row();
    peers_.Add(connection, row.row, row.region_epoch, region->own_mapping);
  } else {
    region->ConnectionEnded();
    if (link.connected()) Request(region, nullptr);
  }
}

// ---- registering --------------------------------------------------------------------------------

// Add and every new connection call this. If both do at the same time, one request serves both.
void Registrar::Request(const std::shared_ptr<Region::Impl>& region, const Reply& done) {
  switch (region->BeginRegistration(done)) {
    case Region::Impl::Ask::kSend: break;
    case Region::Impl::Ask::kWait: return;
    case Region::Impl::Ask::kRegistered:
      if (done) done(Answer());
      return;
    case Region::Impl::Ask::kClosed:
      if (done) done(MakeError(Errc::kCancelled, "region " + region->options.name + " is closed"));
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
      region->Refused(reply.error());
    }
    for (const Reply& waiter : region->TakeWaiters()) waiter(reply ? Result<Answer>(Answer()) : reply.error());
  });
}

Result<std::shared_ptr<Region>> Registrar::Add(std::shared_ptr<Region::Impl> region, Deadline deadline) {
  region->host = self_;
  AddToList(region);
  if (link.connected()) {
    auto answer = std::make_shared<Announcement>();
    Request(region, [answer](const Result<Answer>& reply) { answer->Say(reply ? Status() : Status(reply.error())); });
    MutexLock lock(answer->mutex);
    Status status = MakeError(Errc::kDeadlineExceeded, "kvmd did not register region " + region->options.name + " in time");
    if (WaitUntil(answer->changed, lock, deadline, [&]() KVM_REQUIRES(answer->mutex) { return answer->status.has_value(); }))
      status = *answer->status;
    lock.Unlock();
    // A lost connection is not an error: the region is registered after the reconnect.
    if (!status && status.error().code != Errc::kUnavailable) {
      LetGoAtOnce(*region);
      return status.error();
    }
  }
  return std::make_shared<Region>(std::move(region));
}

void Registrar::AddAdopted(const std::shared_ptr<Region::Impl>& region, std::uint64_t connection) {
  region->host = self_;
  auto added = std::make_shared<Announcement>();
  link.mailbox()->Post([this, self = self_, region, connection, added] {
    if (const std::shared_ptr<RegionHost> client = self.lock()) OnAdopted(region, connection);
    added->Say(Status());
  });
  MutexLock lock(added->mutex);
  // From here on, Find treats the region as this client's own. A link that is being stopped drops
  // the task.
  added->changed.wait_for(lock.native(), timeout, [&]() KVM_REQUIRES(added->mutex) { return added->status.has_value(); });
}

// ---- the end ------------------------------------------------------------------------------------

std::optional<RegionRow> Registrar::LetGo(Region::Impl& region, Deadline deadline) {
  region.End();
  KVM_FAULT_POINT(client_blocks_ended);
  peers_.RemoveByIdentity(region.Identity());
  {
    MutexLock lock(mutex_);
    std::erase_if(regions_, [&](const std::weak_ptr<Region::Impl>& other) { return other.lock().get() == &region; });
  }
  // Its owner may free the memory afterwards.
  region.Close(deadline);
  offloader.Forget(region, deadline);
  return region.TakeRow();
}

void Registrar::LetGoAtOnce(Region::Impl& region) {
  if (const std::optional<RegionRow> row = LetGo(region, After(std::chrono::milliseconds(0)))) link.Post(Unregistration(*row));
}

Status Registrar::Unregister(Region::Impl& region, Deadline deadline) {
  const std::optional<RegionRow> row = LetGo(region, deadline);
  if (!row) {
    if (!region.ForgetImporters()) return {};
    return MakeError(Errc::kUnavailable, "unregister: kvmd is away, so importers of region " + region.options.name + " could not be told");
  }
  KVM_FAULT_POINT(client_unregistering);
  const Result<Answer> reply = link.Call(Unregistration(*row, AckTimeoutMs(deadline)), {}, deadline);
  region.ForgetImporters();
  if (reply) return {};
  if (reply.error().code != Errc::kNotFound) return reply.error();
  return MakeError(Errc::kUnavailable,
                   "unregister: kvmd has restarted meanwhile, importers of region " + region.options.name + " could not be told");
}

void Registrar::UnregisterAll() {
  const Deadline deadline = After(timeout);
  struct Waiting {
    Mutex mutex;
    std::condition_variable answered;
    std::size_t left KVM_GUARDED_BY(mutex) = 0;
  };
  auto waiting = std::make_shared<Waiting>();
  for (const std::shared_ptr<Region::Impl>& region : Regions()) {
    region->End();
    region->Close(deadline);
    const std::optional<RegionRow> row = region->TakeRow();
    if (!row) continue;
    kvmwire::ClientMessage message = Unregistration(*row, AckTimeoutMs(deadline));
    if (region->memory->kind() != layout::HandleKind::kCudaIpc) {
      link.Post(message);
      continue;
    }
    {
      MutexLock lock(waiting->mutex);
      ++waiting->left;
    }
    link.Request(std::move(message), {}, [waiting](const Result<Answer>&) {
      MutexLock lock(waiting->mutex);
      --waiting->left;
      waiting->answered.notify_all();
    });
  }
  MutexLock lock(waiting->mutex);
  WaitUntil(waiting->answered, lock, deadline, [&]() KVM_REQUIRES(waiting->mutex) { return waiting->left == 0; });
}

}  // namespace kvm
