#include "client/lease/leases.h"

#include <algorithm>
#include <string>
#include <utility>

#include "client/connection/wait.h"
#include "client/find/match_impl.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {
namespace {

kvmwire::ClientMessage ReleaseOf(std::uint64_t id) {
  kvmwire::ClientMessage message;
  message.mutable_release_lease()->set_lease(id);
  return message;
}

// The region, in `snapshot`, in which source `i` of `match` lies; null if there is none.
const PeerRegion* RegionOf(const PeerSnapshot& snapshot, const Match::Impl& match, std::size_t i) {
  const BlockSource& source = match.sources[i];
  const std::shared_ptr<const PeerMapping>& mapping = match.mappings[match.mapping_of[i]];
  if (source.region < snapshot.by_row.size()) {
    const PeerRegion& region = snapshot.by_row[source.region];
    if (region.region_epoch == source.region_epoch && region.mapping == mapping) return &region;
  }
  // kvmd has been restarted since the match was made: the same memory has another row in the new
  // registry.
  const auto found =
      std::find_if(snapshot.by_row.begin(), snapshot.by_row.end(), [&](const PeerRegion& region) { return region.mapping == mapping; });
  return found != snapshot.by_row.end() ? &*found : nullptr;
}

// Adds the sources of `match` from `first` on to `hold`, with the rows that they have in the
// registry of `snapshot`.
void AddSources(const PeerSnapshot& snapshot, const Match& match, std::size_t first, kvmwire::AcquireLease& hold) {
  const std::size_t end = std::min(match.size(), first + kMaxLeaseBatch);
  for (std::size_t i = match.first() + first; i < match.first() + end; ++i) {
    const Match::Impl* impl = match.impl();
    const PeerRegion* region = RegionOf(snapshot, *impl, i);
    if (region == nullptr && impl->in_current && i < impl->in_current->sources.size()) {
      impl = impl->in_current.get();
      region = RegionOf(snapshot, *impl, i);
    }
    if (region == nullptr) return;
    const BlockSource& source = impl->sources[i];
    kvmwire::LeaseSource& out = *hold.add_sources();
    out.set_region(static_cast<std::uint32_t>(region - snapshot.by_row.data()));
    out.set_region_epoch(region->region_epoch);
    out.set_block(source.block);
    out.set_generation(source.generation);
  }
}

}  // namespace

Result<std::uint32_t> Leases::TtlMs(std::chrono::milliseconds ttl) {
  if (ttl.count() <= 0) return MakeError(Errc::kInvalidArgument, "lease: a lease needs a time to live");
  return static_cast<std::uint32_t>(std::min<std::int64_t>(ttl.count(), UINT32_MAX));
}

// Sends one message and waits for its answer. The link's thread processes the answer, so that a
// LeaseShrunk that follows at once finds the lease.
Status Leases::AcquireSome(const std::shared_ptr<Lease::Impl>& lease, kvmwire::ClientMessage message, Deadline expires, Deadline deadline) {
  {
    MutexLock lock(lease->mutex);
    lease->waiting = true;
  }
  auto outcome = std::make_shared<Status>();
  link_.Request(std::move(message), {}, [weak = self_, lease, expires, outcome](Result<Answer> reply) {
    const std::shared_ptr<Leases> self = weak.lock();
    std::uint64_t release = 0;
    {
      MutexLock lock(lease->mutex);
      if (!reply) {
        *outcome = reply.error();
      } else {
        const kvmwire::AcquireLeaseReply& held = reply->message.acquire_lease_reply();
        if (lease->released) {
          release = held.lease();
        } else {
          lease->id = held.lease();
          lease->blocks = held.blocks();
          lease->expires = expires;
          if (held.has_not_leased()) lease->reason = MakeError(static_cast<Errc>(held.not_leased().code()), held.not_leased().message());
          if (self) self->Add(held.lease(), lease);
        }
      }
      lease->waiting = false;
      lease->answered.notify_all();
    }
    if (self && release != 0) self->link_.Post(ReleaseOf(release));
  });
  MutexLock lock(lease->mutex);
  if (WaitUntil(lease->answered, lock, deadline, [&]() KVM_REQUIRES(lease->mutex) { return !lease->waiting; })) return *outcome;
  lease->released = lease->id == 0;
  return MakeError(Errc::kDeadlineExceeded, "kvmd did not answer in time");
}

Result<Lease> Leases::Acquire(const Match& match, std::chrono::milliseconds ttl, Deadline deadline) {
  const Result<std::uint32_t> ttl_ms = TtlMs(ttl);
  if (!ttl_ms) return ttl_ms.error();
  if (match.empty()) return MakeError(Errc::kInvalidArgument, "lease: the match is empty");
  auto lease = std::make_shared<Lease::Impl>(self_);
  const std::shared_ptr<const PeerSnapshot> snapshot = peers_.Get().current;
  if (!snapshot) return MakeError(Errc::kUnavailable, "not connected to kvmd");
  const Deadline expires = After(ttl);  // kvmd counts from a later moment
  for (std::size_t first = 0; first < match.size();) {
    kvmwire::ClientMessage message;
    kvmwire::AcquireLease& acquire = *message.mutable_acquire_lease();
    acquire.set_registry_epoch(snapshot->registry.header().epoch);
    acquire.set_ttl_ms(*ttl_ms);
    {
      MutexLock lock(lease->mutex);
      acquire.set_lease(lease->id);
    }
    acquire.set_after(static_cast<std::uint32_t>(first));
    AddSources(*snapshot, match, first, acquire);
    const std::size_t asked = static_cast<std::size_t>(acquire.sources_size());
    Status held =
        asked == 0
            ? Status(MakeError(Errc::kStale, "lease: the region of the block has gone, or is not registered yet since kvmd's restart"))
            : AcquireSome(lease, std::move(message), expires, deadline);
    if (!held && first == 0) return held.error();
    MutexLock lock(lease->mutex);
    if (!held && lease->reason.message.empty()) lease->reason = held.error();
    first += asked;
    if (!held || lease->blocks < first) break;
  }
  return Lease(std::move(lease));
}

Status Leases::Renew(Lease::Impl& lease, std::chrono::milliseconds ttl, Deadline deadline) {
  const Result<std::uint32_t> ttl_ms = TtlMs(ttl);
  if (!ttl_ms) return ttl_ms.error();
  kvmwire::ClientMessage message;
  {
    MutexLock lock(lease.mutex);
    message.mutable_renew_lease()->set_lease(lease.id);
  }
  message.mutable_renew_lease()->set_ttl_ms(*ttl_ms);
  const Deadline expires = After(ttl);
  const Result<Answer> reply = link_.Call(std::move(message), {}, deadline);
  MutexLock lock(lease.mutex);
  if (reply) {
    lease.expires = expires;
    return {};
  }
  // The request may have reached kvmd nevertheless.
  if (reply.error().code == Errc::kDeadlineExceeded) lease.expires = std::min(lease.expires, expires);
  return reply.error();
}

void Leases::Release(std::uint64_t id) {
  {
    MutexLock lock(mutex_);
    leases_.erase(id);
  }
  link_.Post(ReleaseOf(id));
}

void Leases::Add(std::uint64_t id, const std::shared_ptr<Lease::Impl>& lease) {
  MutexLock lock(mutex_);
  leases_[id] = lease;
}

void Leases::Cut(const kvmwire::LeaseShrunk& cut) {
  std::shared_ptr<Lease::Impl> lease;
  {
    MutexLock lock(mutex_);
    const auto found = leases_.find(cut.lease());
    if (found == leases_.end()) return;
    lease = found->second.lock();
    if (cut.blocks() == 0) leases_.erase(found);
  }
  if (!lease) return;
  MutexLock lock(lease->mutex);
  if (cut.blocks() >= lease->blocks) return;
  lease->blocks = cut.blocks();
  lease->reason = MakeError(Errc::kNotFound, "blocks were taken from the lease: " + cut.reason());
}

void Leases::EndAll(const Error& why) {
  std::unordered_map<std::uint64_t, std::weak_ptr<Lease::Impl>> leases;
  {
    MutexLock lock(mutex_);
    leases.swap(leases_);
  }
  for (const auto& [id, weak] : leases) {
    if (const std::shared_ptr<Lease::Impl> lease = weak.lock()) lease->End(why);
  }
}

}  // namespace kvm
