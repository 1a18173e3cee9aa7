#include "kvclient/client.h"

#include <algorithm>
#include <thread>

#include "client/client_impl.h"
#include "client/connection/wait.h"
#include "client/find/count.h"
#include "client/find/find.h"
#include "client/find/marked_keys.h"
#include "client/import/start_import.h"
#include "client/join/describe_blocks.h"
#include "client/join/join_cache.h"
#include "client/near_misses.h"
#include "client/region/granted_memory.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {
namespace {

// Errors that a retry will not fix soon.
bool IsFinal(Errc code) {
  return code == Errc::kPermissionDenied || code == Errc::kVersionMismatch || code == Errc::kInvalidArgument || code == Errc::kProtocol ||
         code == Errc::kResourceExhausted;
}

// Counts one lookup: what it found, why not more, and of one in kLookupsPerTime how long it took.
class LookupNote {
 public:
  LookupNote(AtomicStats& stats, Misses& misses, std::span<const BlockKey> keys) noexcept
      : stats_(stats),
        misses_(misses),
        keys_(keys),
        timed_(stats.finds.fetch_add(1, std::memory_order_relaxed) % kLookupsPerTime == 0),
        begun_(timed_ ? Clock::now() : Clock::time_point()) {}

  void End(std::size_t found, MatchEnd end) noexcept {
    stats_.keys_looked_up.fetch_add(keys_.size(), std::memory_order_relaxed);
    stats_.keys_matched.fetch_add(found, std::memory_order_relaxed);
    if (timed_) stats_.lookup_times.Add(Clock::now() - begun_);
    if (found < keys_.size() || keys_.empty()) [[unlikely]]
      misses_.Note(end, found, keys_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  AtomicStats& stats_;
  Misses& misses_;
  const std::span<const BlockKey> keys_;
  const bool timed_;
  const Clock::time_point begun_;
};

// The match of a shard that was not looked up, beside one that ended in this way.
Match NoBlocks(MatchEnd other) {
  auto none = std::make_shared<Match::Impl>();
  none->end = other == MatchEnd::kUnavailable ? other : MatchEnd::kComplete;
  return Match(std::move(none), 0, 0);
}

}  // namespace

Result<std::shared_ptr<Client>> Client::Connect(ClientOptions options) {
  if (options.name.size() > kMaxNameBytes) {
    return MakeError(Errc::kInvalidArgument, "client name: at most " + std::to_string(kMaxNameBytes) + " bytes");
  }
  options.reconnect_min = std::max(options.reconnect_min, std::chrono::milliseconds(1));
  options.reconnect_max = std::max(options.reconnect_max, options.reconnect_min);
  const Deadline deadline = After(options.timeout);
  const bool start_offline = options.start_offline;
  const std::string path = options.socket_path;
  auto client = std::make_shared<Client>(std::make_shared<Impl>(std::move(options)));
  for (const DeviceUuid& device : client->impl().options.devices) {
    if (const Result<std::size_t> opened = client->impl().devices.Open(device); !opened) return opened.error();
  }
  try {
    client->impl().Start();
  } catch (const std::system_error& e) {
    return SystemError("start libkvclient's thread", e.code().value());
  }
  if (start_offline) return client;
  for (;;) {
    const Deadline step = std::min(deadline, After(std::chrono::milliseconds(10)));
    if (client->WaitConnected(step)) return client;
    Error last = client->last_error();
    if (!last.message.empty() && IsFinal(last.code)) return last;
    if (std::chrono::steady_clock::now() < deadline && !Interrupted()) continue;
    if (last.message.empty()) return MakeError(Errc::kDeadlineExceeded, "kvmd at " + path + " did not answer in time");
    return last;
  }
}

Client::Client(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Client::~Client() {
  if (!impl_->process.Here()) {
    LeaveToParent(std::move(impl_));
    return;
  }
  impl_->Stop();
}

ConnectionState Client::state() const noexcept {
  if (!impl_->process.Here()) return ConnectionState::kClosed;
  return impl_->link.connected() ? ConnectionState::kConnected : ConnectionState::kConnecting;
}

Status Client::WaitConnected(Deadline deadline) {
  if (!impl_->process.Here()) return BelongsToParent("client");
  return impl_->WaitConnected(deadline);
}
std::uint64_t Client::client_id() const noexcept { return impl_->process.Here() ? impl_->link.client_id() : 0; }
std::string Client::domain() const { return impl_->process.Here() ? impl_->Domain() : ""; }
Error Client::last_error() const { return impl_->process.Here() ? impl_->link.last_error() : BelongsToParent("client"); }

Result<Model> Client::DeclareModel(const ModelSpec& spec, Deadline deadline) {
  if (!impl_->process.Here()) return BelongsToParent("client");
  return impl_->models.Declare(spec, deadline);
}

std::vector<NearMiss> Client::NearMisses(const Model& model) const {
  if (!impl_->process.Here()) return {};
  const PeerTable::Snapshots snapshots = impl_->peers.Get();
  return snapshots.current ? NearMissesOf(snapshots.current->registry, model) : std::vector<NearMiss>();
}

Result<std::shared_ptr<Region>> Client::AllocateRegion(const Model& model, RegionOptions options, Deadline deadline) {
  if (!impl_->process.Here()) return BelongsToParent("client");
  return impl_->AllocateRegion(model, std::move(options), deadline);
}

Result<AdoptedRegion> Client::AdoptRegion(const Model& model, RegionOptions options, Deadline deadline) {
  if (!impl_->process.Here()) return BelongsToParent("client");
  return impl_->AdoptRegion(model, std::move(options), deadline);
}

Result<ReclaimedMemory> Client::ReclaimOrphans(const ReclaimOptions& what, Deadline deadline) {
  if (!impl_->process.Here()) return BelongsToParent("client");
  return kvm::ReclaimOrphans(impl_->link, what, deadline);
}

Result<Lease> Client::AcquireLease(const Match& match, std::chrono::milliseconds ttl, Deadline deadline) {
  if (!impl_->process.Here()) return BelongsToParent("client");
  return impl_->leases.Acquire(match, ttl, deadline);
}

Result<std::shared_ptr<Region>> Client::RegisterRegion(const Model& model, RegionOptions options, std::span<const DeviceRange> segments,
                                                       Deadline deadline) {
  if (!impl_->process.Here()) return BelongsToParent("client");
  return impl_->RegisterRegion(model, std::move(options), segments, deadline);
}

std::vector<UnmappedRegion> Client::UnmappedRegions() const {
  return impl_->process.Here() ? impl_->mapper.Unmapped() : std::vector<UnmappedRegion>();
}

Match Client::Find(std::span<const BlockKey> keys, const FindOptions& options) const noexcept {
  if (!impl_->process.Here()) return Match();
  LookupNote note(impl_->stats, impl_->misses, keys);
  const PeerTable::Snapshots snapshots = impl_->peers.Get();
  std::shared_ptr<Match::Impl> best;
  try {
    best = std::make_shared<Match::Impl>();
    best->sources.reserve(keys.size());
    best->mapping_of.reserve(keys.size());
    const FindTarget target = impl_->TargetOf(options);
    if (snapshots.current) FindIn(*snapshots.current, keys, target, *best);
    if (best->sources.size() < keys.size() && snapshots.previous) {
      auto other = std::make_shared<Match::Impl>();
      FindIn(*snapshots.previous, keys, target, *other);
      if (other->sources.size() > best->sources.size()) {
        other->in_current = std::move(best);
        best = std::move(other);
      }
    }
    impl_->NoteSample(keys, *best);
    // While kvmd is away, nothing that is published now can be found.
    if (options.computing && best->sources.size() < keys.size() && snapshots.current && impl_->link.connected())
      best->being_computed = FindMark(snapshots.current->registry.marks(), keys, best->sources.size(), impl_->link.client_id());
  } catch (const std::bad_alloc&) {
    return Match();
  }
  const std::size_t found = best->sources.size();
  note.End(found, best->end);
  return Match(std::move(best), 0, found);
}

std::size_t Client::Count(std::span<const BlockKey> keys, const FindOptions& options) const noexcept {
  if (!impl_->process.Here()) return 0;
  LookupNote note(impl_->stats, impl_->misses, keys);
  const PeerTable::Snapshots snapshots = impl_->peers.Get();
  const FindTarget target = impl_->TargetOf(options);
  CountedKeys best;
  if (snapshots.current) best = CountIn(*snapshots.current, keys, target);
  if (best.found < keys.size() && snapshots.previous) {
    const CountedKeys other = CountIn(*snapshots.previous, keys, target);
    if (other.found > best.found) best = other;
  }
  note.End(best.found, best.end);
  return best.found;
}

std::size_t Client::CountShards(std::span<const std::span<const BlockKey>> keys_by_shard, const FindOptions& options) const noexcept {
  std::size_t shortest = keys_by_shard.empty() ? 0 : static_cast<std::size_t>(-1);
  for (const std::span<const BlockKey> keys : keys_by_shard) {
    if (shortest == 0) break;
    shortest = Count(keys.first(std::min(keys.size(), shortest)), options);
  }
  return shortest;
}

Match Client::FindWaiting(std::span<const BlockKey> keys, const WaitOptions& wait, FindOptions options) const noexcept {
  options.computing = true;
  if (!impl_->process.Here()) return Match();
  try {
    return impl_->waits.Find(wait, [&] { return Find(keys, options); });
  } catch (const std::bad_alloc&) {
    return Match();
  }
}

ComputingMark Client::MarkComputing(std::span<const BlockKey> missing, std::chrono::milliseconds ttl) {
  if (!impl_->process.Here() || missing.empty()) return {};
  return impl_->marks.Mark(missing, ttl);
}

std::vector<Match> Client::FindShards(std::span<const std::span<const BlockKey>> keys_by_shard, const FindOptions& options) const {
  std::vector<Match> matches;
  std::size_t shortest = static_cast<std::size_t>(-1);
  for (const std::span<const BlockKey> keys : keys_by_shard) {
    // Blocks that an earlier shard lacks need not be looked up for later shards. Where it has none,
    // the later shard is not looked up at all, and has missed nothing by itself.
    if (shortest == 0) {
      matches.push_back(NoBlocks(matches.back().end()));
      continue;
    }
    matches.push_back(Find(keys.first(std::min(keys.size(), shortest)), options));
    shortest = std::min(shortest, matches.back().size());
  }
  for (Match& match : matches) match = match.Slice(0, shortest);
  return matches;
}

Result<ImportTicket> Client::Import(const Match& match, Region& destination, std::span<const std::uint32_t> blocks,
                                    const ImportOptions& options) {
  if (!impl_->process.Here()) return BelongsToParent("client");
  if (destination.impl().host.lock().get() != &impl_->registrar)
    return MakeError(Errc::kInvalidArgument, "import: region " + destination.name() + " belongs to another client");
  const ImportServices services{{impl_, &impl_->stats}, {impl_, &impl_->host_cache_uses}, impl_->options.timeout};
  return StartImport(services, match, destination, blocks, options);
}

JoinOutcome Client::JoinCache(const Region& destination, std::span<const BlockKey> keys, const JoinOptions& options) const {
  if (!impl_->process.Here()) return {0, 0, BelongsToParent("client").message};
  return kvm::JoinCache(*this, destination, keys, options);
}

Result<DescribeOutcome> Client::DescribeBlocks(const ModelSpec& spec, std::span<const BlockKey> keys, std::span<const std::uint32_t> tokens,
                                               const DescribeOptions& options) const {
  if (!impl_->process.Here()) return BelongsToParent("client");
  return kvm::DescribeBlocks(spec, keys, tokens, options);
}

ClientStats Client::Stats() const noexcept { return impl_->process.Here() ? impl_->Stats() : ClientStats(); }

}  // namespace kvm
