#include "client/region/granted_memory.h"

#include <algorithm>
#include <utility>

#include "client/region/region_messages.h"
#include "client/region/region_options.h"

namespace kvm {

GrantMemory GrantUntil(Link& link, const RegionOptions& region, Deadline deadline) {
  return [&link, wanted = region.outlives_owner, deadline](std::span<const std::uint64_t> sizes) -> Fds {
    if (!wanted || !link.connected()) return {};
    kvmwire::ClientMessage message;
    for (const std::uint64_t bytes : sizes) message.mutable_allocate_memory()->add_size_bytes(bytes);
    Result<Answer> reply = link.Call(std::move(message), {}, deadline);
    if (!reply || reply->fds.size() != sizes.size()) return {};
    return std::move(reply->fds);
  };
}

GrantMemory GrantInPlaceOfTheDead(Link& link, const Model& model, const RegionOptions& region, Deadline deadline, bool& gave_way) {
  return [&link, &model, &region, deadline, &gave_way](std::span<const std::uint64_t> sizes) -> Fds {
    if (!link.connected()) return {};
    kvmwire::ClientMessage message;
    kvmwire::AllocateMemory& request = *message.mutable_allocate_memory();
    *request.mutable_for_region() = ExpectedDescriptor(model, region);
    // Half of the time is for importers to unmap; the other half is for allocating the memory.
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

Result<ReclaimedMemory> ReclaimOrphans(Link& link, const ReclaimOptions& what, Deadline deadline) {
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
