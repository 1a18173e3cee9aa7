// Memory that outlives its owner: asked of kvmd beforehand, adopted and given up afterwards.
#include <algorithm>
#include <utility>

#include "client/client_impl.h"
#include "client/connection/wait.h"
#include "client/region/region_impl.h"
#include "proto/base/fault_point.h"

namespace kvm {
namespace {

constexpr std::chrono::milliseconds kAskAgainFirst{2}, kAskAgainLast{50};

// An adoption under way, between the caller and the link's thread.
struct Adoption {
  std::mutex mutex;
  std::condition_variable changed;
  bool abandoned = false;  // the caller has stopped waiting
  std::optional<Result<Answer>> reply;
  std::uint64_t connection = 0;  // that the reply came by
  bool added = false;
};

}  // namespace

GrantMemory Client::Impl::GrantUntil(const RegionOptions& region, Deadline deadline) {
  return [this, wanted = region.outlives_owner, deadline](std::span<const std::uint64_t> sizes) -> Fds {
    if (!wanted || !link.connected()) return {};
    kvmwire::ClientMessage message;
    for (const std::uint64_t bytes : sizes) message.mutable_allocate_memory()->add_size_bytes(bytes);
    Result<Answer> reply = link.Call(std::move(message), {}, deadline);
    if (!reply || reply->fds.size() != sizes.size()) return {};
    return std::move(reply->fds);
  };
}

GrantMemory Client::Impl::GrantInPlaceOfTheDead(const Model& model, const RegionOptions& region, Deadline deadline, bool& gave_way) {
  return [this, &model, &region, deadline, &gave_way](std::span<const std::uint64_t> sizes) -> Fds {
    if (!link.connected()) return {};
    kvmwire::ClientMessage message;
    kvmwire::AllocateMemory& request = *message.mutable_allocate_memory();
    *request.mutable_for_region() = Region::Impl::Expected(model, region);
    // The other half is for the memory itself.
    request.set_ack_timeout_ms(std::max(1u, AckTimeoutMs(deadline) / 2));
    if (region.outlives_owner) {
      for (const std::uint64_t bytes : sizes) request.add_size_bytes(bytes);
    }
    Result<Answer> reply = link.Call(std::move(message), {}, deadline);
    if (!reply) return {};
    gave_way = gave_way || reply->message.reclaim_reply().regions() > 0;
    if (reply->fds.size() != sizes.size()) return {};
    return std::move(reply->fds);
  };
}

Result<AdoptedRegion> Client::Impl::AdoptRegion(const Model& model, RegionOptions region, Deadline deadline) {
  const Result<std::size_t> device = OpenDevice(region.device, deadline);
  if (!device) return device.error();
  if (Status sound = Region::Impl::Complete(region); !sound) return sound.error();
  // kvmd takes it that a client that asks for a region it was given has not got it.
  for (const std::shared_ptr<Region::Impl>& own : Regions()) {
    if (own->options.name == region.name) return MakeError(Errc::kAlreadyExists, "adopt region " + region.name + ": this client has it");
  }
  kvmwire::ClientMessage message;
  *message.mutable_adopt_region()->mutable_expected() = Region::Impl::Expected(model, region);

  std::shared_ptr<Adoption> adoption;
  for (std::chrono::milliseconds pause = kAskAgainFirst;;) {
    adoption = std::make_shared<Adoption>();
    link.Request(message, {}, [this, adoption](Result<Answer> reply) {
      std::lock_guard lock(adoption->mutex);
      if (adoption->abandoned && reply) {
        const kvmwire::AdoptRegionReply& adopted = reply->message.adopt_region_reply();
        link.Post(Unregistration(adopted.region(), adopted.region_epoch()));
      }
      if (reply) adoption->connection = connection_;
      adoption->reply = std::move(reply);
      adoption->changed.notify_all();
    });
    std::unique_lock lock(adoption->mutex);
    if (!WaitUntil(adoption->changed, lock, deadline, [&] { return adoption->reply.has_value(); })) {
      adoption->abandoned = true;
      return MakeError(Errc::kDeadlineExceeded, "kvmd did not give region " + region.name + " in time");
    }
    if (*adoption->reply) break;
    const Error& error = adoption->reply->error();
    // The process that had it is ending, or kvmd is coming back.
    if (error.code != Errc::kUnavailable || After(pause) >= deadline) return error;
    lock.unlock();
    if (!Sleep(pause)) return error;
    pause = std::min(2 * pause, kAskAgainLast);
  }
  KVM_FAULT_POINT(client_adoption_granted);
  const kvmwire::AdoptRegionReply& reply = (*adoption->reply)->message.adopt_region_reply();
  const std::size_t needed = 2 + static_cast<std::size_t>(reply.descriptor_().segments_size());
  Result<std::shared_ptr<Region::Impl>> made = MakeError(Errc::kProtocol, "kvmd gave a region without its descriptors");
  if ((*adoption->reply)->lost_fds) made = *(*adoption->reply)->lost_fds;
  if ((*adoption->reply)->fds.size() == needed)
    made = Region::Impl::Adopt(model, std::move(region), devices, *device, reply, std::move((*adoption->reply)->fds));
  if (!made) {
    link.Post(Unregistration(reply.region(), reply.region_epoch()));
    return made.error();
  }
  AdoptedRegion out;
  for (const PublishRecord& record : (*made)->records) {
    if (record.generation != 0) out.blocks.push_back({record.key, record.block, record.depth});
  }
  AddAdopted(*made, adoption->connection);
  KVM_FAULT_POINT(client_adopted);
  out.region = std::make_shared<Region>(std::move(*made));
  return out;
}

// On the link's thread, so that a reconnection is either seen here or sees the region.
void Client::Impl::AddAdopted(const std::shared_ptr<Region::Impl>& region, std::uint64_t connection) {
  region->client = weak_from_this();
  auto adoption = std::make_shared<Adoption>();
  link.mailbox()->Post([self = weak_from_this(), region, connection, adoption] {
    if (const std::shared_ptr<Impl> client = self.lock()) {
      {
        std::lock_guard lock(client->mutex_);
        client->regions_.push_back(region);
      }
      if (client->connection_ == connection && client->link.connected()) {
        client->peers.Add(connection, region->row, region->region_epoch, region->own_mapping);
      } else {
        {
          std::lock_guard lock(region->mutex);
          region->registered = false;
        }
        if (client->link.connected()) client->RequestRegistration(region, nullptr);
      }
    }
    std::lock_guard lock(adoption->mutex);
    adoption->added = true;
    adoption->changed.notify_all();
  });
  std::unique_lock lock(adoption->mutex);
  // Finds see the region as their own from here on; a link that is being stopped drops the task.
  adoption->changed.wait_for(lock, options.timeout, [&] { return adoption->added; });
}

Result<ReclaimedMemory> Client::Impl::ReclaimOrphans(const ReclaimOptions& what, Deadline deadline) {
  kvmwire::ClientMessage message;
  kvmwire::Reclaim& request = *message.mutable_reclaim();
  if (what.device) request.set_device_uuid(what.device->data(), what.device->size());
  request.set_name(what.name);
  request.set_min_age_s(static_cast<std::uint32_t>(std::clamp<std::int64_t>(what.min_age.count(), 0, UINT32_MAX)));
  request.set_ack_timeout_ms(AckTimeoutMs(deadline));
  const Result<Answer> reply = link.Call(std::move(message), {}, deadline);
  if (!reply) return reply.error();
  const kvmwire::ReclaimReply& reclaimed = reply->message.reclaim_reply();
  return ReclaimedMemory{reclaimed.regions(), reclaimed.blocks(), reclaimed.bytes(), reclaimed.still_mapped()};
}

}  // namespace kvm
