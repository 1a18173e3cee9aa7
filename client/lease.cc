#include "kvclient/lease.h"

#include <algorithm>
#include <utility>

#include "client/client_impl.h"
#include "client/connection/wait.h"
#include "client/find/match_impl.h"
#include "client/lease_impl.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {
namespace {

Error Over(const char* how) { return MakeError(Errc::kNotFound, std::string("the lease is over: ") + how); }

kvmwire::ClientMessage ReleaseOf(std::uint64_t id) {
  kvmwire::ClientMessage message;
  message.mutable_release_lease()->set_lease(id);
  return message;
}

Result<std::uint32_t> TtlMs(std::chrono::milliseconds ttl) {
  if (ttl.count() <= 0) return MakeError(Errc::kInvalidArgument, "lease: a lease needs a time to live");
  return static_cast<std::uint32_t>(std::min<std::int64_t>(ttl.count(), UINT32_MAX));
}

// Row in `snapshot` of the region that `match`'s source `i` lies in; null: none.
const PeerRegion* RegionOf(const PeerSnapshot& snapshot, const Match::Impl& match, std::size_t i) {
  const BlockSource& source = match.sources[i];
  const std::shared_ptr<const PeerMapping>& mapping = match.mappings[match.mapping_of[i]];
  if (source.region < snapshot.by_row.size()) {
    const PeerRegion& region = snapshot.by_row[source.region];
    if (region.region_epoch == source.region_epoch && region.mapping == mapping) return &region;
  }
  // kvmd has restarted since: the same memory has a row of its own in each registry.
  const auto found =
      std::find_if(snapshot.by_row.begin(), snapshot.by_row.end(), [&](const PeerRegion& region) { return region.mapping == mapping; });
  return found != snapshot.by_row.end() ? &*found : nullptr;
}

// The leading sources of `match` from `first` on, as the registry of `snapshot` knows them, into `hold`.
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

// ---- what a client holds ------------------------------------------------------------------------

void Lease::Impl::End(const Error& why) {
  std::lock_guard lock(mutex);
  if (blocks == 0) return;
  blocks = 0;
  reason = why;
}

void LeaseList::Add(std::uint64_t id, const std::shared_ptr<Lease::Impl>& lease) {
  std::lock_guard lock(mutex_);
  leases_[id] = lease;
}

void LeaseList::Remove(std::uint64_t id) {
  std::lock_guard lock(mutex_);
  leases_.erase(id);
}

void LeaseList::Cut(const kvmwire::LeaseShrunk& cut) {
  std::shared_ptr<Lease::Impl> lease;
  {
    std::lock_guard lock(mutex_);
    const auto found = leases_.find(cut.lease());
    if (found == leases_.end()) return;
    lease = found->second.lock();
    if (cut.blocks() == 0) leases_.erase(found);
  }
  if (!lease) return;
  std::lock_guard lock(lease->mutex);
  if (cut.blocks() >= lease->blocks) return;
  lease->blocks = cut.blocks();
  lease->reason = MakeError(Errc::kNotFound, "blocks were taken from the lease: " + cut.reason());
}

void LeaseList::EndAll(const Error& why) {
  std::unordered_map<std::uint64_t, std::weak_ptr<Lease::Impl>> leases;
  {
    std::lock_guard lock(mutex_);
    leases.swap(leases_);
  }
  for (const auto& [id, weak] : leases) {
    if (const std::shared_ptr<Lease::Impl> lease = weak.lock()) lease->End(why);
  }
}

// ---- asking for one -----------------------------------------------------------------------------

// One message of it and its answer, which the link's thread takes: a cut that comes right behind it must find the lease.
Status Client::Impl::AcquireSome(const std::shared_ptr<Lease::Impl>& lease, kvmwire::ClientMessage message, Deadline expires,
                                 Deadline deadline) {
  {
    std::lock_guard lock(lease->mutex);
    lease->waiting = true;
  }
  auto outcome = std::make_shared<Status>();
  link.Request(std::move(message), {}, [weak = weak_from_this(), lease, expires, outcome](Result<Answer> reply) {
    const std::shared_ptr<Impl> self = weak.lock();
    std::uint64_t release = 0;
    {
      std::lock_guard lock(lease->mutex);
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
          if (self) self->leases.Add(held.lease(), lease);
        }
      }
      lease->waiting = false;
      lease->answered.notify_all();
    }
    if (self && release != 0) self->link.Post(ReleaseOf(release));
  });
  std::unique_lock lock(lease->mutex);
  if (WaitUntil(lease->answered, lock, deadline, [&] { return !lease->waiting; })) return *outcome;
  lease->released = lease->id == 0;
  return MakeError(Errc::kDeadlineExceeded, "kvmd did not answer in time");
}

Result<Lease> Client::Impl::AcquireLease(const Match& match, std::chrono::milliseconds ttl, Deadline deadline) {
  const Result<std::uint32_t> ttl_ms = TtlMs(ttl);
  if (!ttl_ms) return ttl_ms.error();
  if (match.empty()) return MakeError(Errc::kInvalidArgument, "lease: the match is empty");
  auto lease = std::make_shared<Lease::Impl>();
  lease->client = weak_from_this();
  const std::shared_ptr<const PeerSnapshot> snapshot = peers.Get().current;
  if (!snapshot) return MakeError(Errc::kUnavailable, "not connected to kvmd");
  const Deadline expires = After(ttl);  // kvmd counts from later on
  for (std::size_t first = 0; first < match.size();) {
    kvmwire::ClientMessage message;
    kvmwire::AcquireLease& hold = *message.mutable_acquire_lease();
    hold.set_registry_epoch(snapshot->registry.header().epoch);
    hold.set_ttl_ms(*ttl_ms);
    hold.set_lease(lease->id);
    hold.set_after(static_cast<std::uint32_t>(first));
    AddSources(*snapshot, match, first, hold);
    const std::size_t asked = static_cast<std::size_t>(hold.sources_size());
    Status held =
        asked == 0
            ? Status(MakeError(Errc::kStale, "lease: the region of the block has gone, or is not registered yet since kvmd's restart"))
            : AcquireSome(lease, std::move(message), expires, deadline);
    if (!held && first == 0) return held.error();
    std::lock_guard lock(lease->mutex);
    if (!held && lease->reason.message.empty()) lease->reason = held.error();
    first += asked;
    if (!held || lease->blocks < first) break;
  }
  return Lease(std::move(lease));
}

// ---- Lease --------------------------------------------------------------------------------------

Lease::Lease() noexcept = default;
Lease::Lease(std::shared_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Lease::~Lease() { Release(); }
Lease::Lease(Lease&&) noexcept = default;
Lease& Lease::operator=(Lease&& other) noexcept {
  if (this == &other) return *this;
  Release();
  impl_ = std::move(other.impl_);
  return *this;
}

std::size_t Lease::blocks() const noexcept {
  if (!impl_ || !impl_->process.Here()) return 0;
  std::lock_guard lock(impl_->mutex);
  return impl_->BlocksAt(std::chrono::steady_clock::now());
}

Error Lease::reason() const {
  if (!impl_) return MakeError(Errc::kCancelled, "nothing is held");
  if (!impl_->process.Here()) return BelongsToParent("lease");
  std::lock_guard lock(impl_->mutex);
  if (impl_->blocks > 0 && impl_->BlocksAt(std::chrono::steady_clock::now()) == 0) return Over("its time has passed");
  return impl_->reason;
}

std::chrono::milliseconds Lease::left() const noexcept {
  if (!impl_ || !impl_->process.Here()) return std::chrono::milliseconds(0);
  const Deadline now = std::chrono::steady_clock::now();
  std::lock_guard lock(impl_->mutex);
  if (impl_->BlocksAt(now) == 0) return std::chrono::milliseconds(0);
  return std::chrono::duration_cast<std::chrono::milliseconds>(impl_->expires - now);
}

Status Lease::Renew(std::chrono::milliseconds ttl, Deadline deadline) {
  const Result<std::uint32_t> ttl_ms = TtlMs(ttl);
  if (!ttl_ms) return ttl_ms.error();
  if (blocks() == 0) return reason().message.empty() ? Over("it holds nothing") : reason();
  const std::shared_ptr<Client::Impl> client = impl_->client.lock();
  if (!client) return MakeError(Errc::kCancelled, "the lease's client is closed");
  kvmwire::ClientMessage message;
  {
    std::lock_guard lock(impl_->mutex);
    message.mutable_renew_lease()->set_lease(impl_->id);
  }
  message.mutable_renew_lease()->set_ttl_ms(*ttl_ms);
  const Deadline expires = After(ttl);
  const Result<Answer> reply = client->link.Call(std::move(message), {}, deadline);
  std::lock_guard lock(impl_->mutex);
  if (reply) {
    impl_->expires = expires;
    return {};
  }
  // It may have arrived all the same.
  if (reply.error().code == Errc::kDeadlineExceeded) impl_->expires = std::min(impl_->expires, expires);
  return reply.error();
}

void Lease::Release() noexcept {
  std::shared_ptr<Impl> impl = std::exchange(impl_, nullptr);
  if (!impl) return;
  if (!impl->process.Here()) return LeaveToParent(std::move(impl));
  const std::shared_ptr<Client::Impl> client = impl->client.lock();
  std::uint64_t id = 0;
  {
    std::lock_guard lock(impl->mutex);
    impl->released = true;  // a message of it may still be unanswered
    id = std::exchange(impl->id, 0);
  }
  if (!client || id == 0) return;
  client->leases.Remove(id);
  client->link.Post(ReleaseOf(id));
}

}  // namespace kvm
