// Where the host cache's slabs come from, and who gives one up.
//
// A writer that has no free slot gets, in this order: a slab that nobody can write any more; new memory, while the
// size, the quotas and the machine allow it; memory of a slab that others have not used for long, or that is above
// their share; the slot of a block of its own, which the policy chooses.
#include <algorithm>

#include "daemon/host_cache/host_cache.h"
#include "daemon/registry/registry_segment.h"
#include "daemon/system/log.h"
#include "daemon/system/steady_ms.h"
#include "proto/base/memory_room.h"

namespace kvm::daemon {
namespace {

// By how much the content of a slab must be older than what a writer would evict of its own: taking a slab costs its
// content and the zeroing of as much memory.
constexpr std::uint64_t kMuchOlderMs = 10'000;
constexpr std::uint64_t kOthersPart = 16;         // of what this process may have is neither the cache's nor the registries'
constexpr std::chrono::seconds kMemoryPause{10};  // after the machine had none left

std::string Mib(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

}  // namespace

std::uint64_t HostCacheSlabBytes(const Config& config) noexcept {
  constexpr std::uint64_t kLeast = std::uint64_t{64} << 20, kMost = std::uint64_t{1} << 30, kSlabs = 64, kFewestSlabs = 16;
  if (config.host_cache_slab_bytes != 0) return std::min(config.host_cache_slab_bytes, config.host_cache_bytes);
  return std::min(std::clamp(config.host_cache_bytes / kSlabs, kLeast, kMost), config.host_cache_bytes / kFewestSlabs);
}

Status CheckHostCache(const Config& config, bool restored) {
  if (config.host_cache_bytes == 0) return {};
  const Result<MemoryRoom> room = MemoryRoom::Read();
  if (!room) return MakeError(room.error().code, "--host-cache: " + room.error().message);
  // What is in use now may be this cache: a kvmd that is started anew goes on with the memory of the one before.
  const MemoryLevel& level = room->smallest();
  const std::uint64_t domains = MostDomains(config), registries = restored ? 2 * domains : domains;
  const std::uint64_t registry = RegistrySegment::BytesFor({config.max_entries, config.max_regions, config.max_models});
  const std::uint64_t most = level.limit_bytes - level.limit_bytes / kOthersPart;
  if (config.host_cache_bytes > most || registry > (most - config.host_cache_bytes) / registries) {
    return MakeError(Errc::kInvalidArgument, "--host-cache: " + Mib(config.host_cache_bytes) + " are asked for, beside " +
                                                 std::to_string(registries) + " registries of " + Mib(registry) +
                                                 " (--max-domains, --max-entries" +
                                                 (restored ? "; each twice while kvmd is started anew); " : "); ") + level.name +
                                                 " allows " + Mib(level.limit_bytes) + ", of which " + Mib(most) + " are for both");
  }
  const std::uint64_t slab = HostCacheSlabBytes(config);
  for (const auto& [bytes, option] : {std::pair(config.max_host_cache_per_domain, "--max-host-cache-per-domain"),
                                      std::pair(config.max_host_cache_per_client, "--max-host-cache-per-client")}) {
    if (bytes != 0 && bytes < slab) {
      return MakeError(Errc::kInvalidArgument, std::string(option) + ": " + std::to_string(bytes) +
                                                   " bytes are less than a slab of the host cache, " + std::to_string(slab) +
                                                   " bytes (--host-cache-slab)");
    }
  }
  return {};
}

HostCache::HostCache(const Config& config, HostCacheEvents& host) : config_(config), host_(host), slab_bytes_(HostCacheSlabBytes(config)) {}

// ---- a place for a block ------------------------------------------------------------------------

std::optional<HostCache::Place> HostCache::FindPlace(SlabClass& group, const std::shared_ptr<SlabWriter>& writer,
                                                     const PublishRecord& record, std::string& reason, NoPlace& otherwise) {
  otherwise = NoPlace::kFull;
  if (writer->granted >= kMaxGrantsPerClient) {
    reason = "too many blocks are granted to this client and not stored yet";
    return std::nullopt;
  }
  const auto take = [&](Slab& slab) -> std::optional<Place> {
    const std::optional<policy::Slot> slot = group.blocks.Grant(slab.position, record);
    return slot ? std::optional(Place{&slab, *slot}) : std::nullopt;
  };
  bool has_slab = false;
  for (const auto& slab : slabs_) {
    if (&slab->group != &group || !slab->WritableBy(*writer)) continue;
    has_slab = true;
    if (const auto place = take(*slab)) return place;
  }
  if (Slab* slab = Abandoned(group, *writer, /*with_room=*/true)) {
    AssignWriter(*slab, writer);
    return take(*slab);
  }
  Limit limit = LimitFor(group, *writer);
  if (limit == Limit::kNone) {
    if (Allocating(group, *writer) || StartSlab(group, writer)) {
      otherwise = NoPlace::kWait;
      return std::nullopt;
    }
    limit = Limit::kMachine;
  }
  if (Slab* slab = Abandoned(group, *writer, /*with_room=*/false)) {
    AssignWriter(*slab, writer);
    has_slab = true;
  }
  bool held = false;
  const std::optional<policy::Slot> own = has_slab ? OwnVictim(group, *writer, record) : std::nullopt;
  if ((limit == Limit::kFull || limit == Limit::kDomain) && closing_.empty()) {
    const auto used_ms = own ? std::optional(group.blocks[*own].used_ms) : std::nullopt;
    if (Slab* slab = ToGiveUp(group, *writer, used_ms, limit == Limit::kDomain, held)) Close(*slab);
  }
  if (!own) {
    // Memory that others are giving up comes soon, and so do blocks that can be evicted once they are stored.
    if ((!closing_.empty() && limit != Limit::kClient) || (has_slab && writer->granted > 0)) otherwise = NoPlace::kWait;
    reason = Reason(limit);
    if (otherwise == NoPlace::kFull && (held || HoldsPinned(group, *writer))) {
      otherwise = NoPlace::kStored;
      reason = "leased: leases hold the blocks that could make room (kvctl leases)";
    }
    return std::nullopt;
  }
  for (const auto& slab : slabs_) {
    if (&slab->group != &group || slab->position != group.blocks.PositionOf(*own)) continue;
    Evict(*slab, *own);
    return take(*slab);
  }
  return std::nullopt;
}

std::optional<policy::Slot> HostCache::OwnVictim(SlabClass& group, const SlabWriter& writer, const PublishRecord& wanted) {
  std::vector<std::uint32_t> positions;
  for (const auto& slab : slabs_) {
    if (&slab->group == &group && slab->WritableBy(writer)) positions.push_back(slab->position);
  }
  return group.blocks.ChooseVictim(positions, wanted);
}

bool HostCache::HoldsPinned(const SlabClass& group, const SlabWriter& writer) const {
  return std::any_of(slabs_.begin(), slabs_.end(), [&](const auto& slab) {
    return &slab->group == &group && slab->WritableBy(writer) && group.blocks.pinned_in(slab->position) > 0;
  });
}

// ---- whose memory -------------------------------------------------------------------------------

Slab* HostCache::Abandoned(const SlabClass& group, const SlabWriter& writer, bool with_room) const {
  Slab* best = nullptr;
  for (const auto& slab : slabs_) {
    if (&slab->group != &group || !slab->abandoned() || slab->uid != writer.uid) continue;
    if (config_.max_host_cache_per_client != 0 && writer.bytes + slab->bytes() > config_.max_host_cache_per_client) continue;
    if (with_room && group.blocks.free_in(slab->position) == 0) continue;
    if (best == nullptr || group.blocks.free_in(slab->position) > group.blocks.free_in(best->position)) best = slab.get();
  }
  return best;
}

void HostCache::AssignWriter(Slab& slab, const std::shared_ptr<SlabWriter>& writer) {
  slab.writer = writer;
  writer->bytes += slab.bytes();
  host_.SlabGranted(slab);
}

// Slabs of a dead or departed writer's, those much older than what this one would evict, and those of a writer above
// its share, if this one is below: the one that was used least recently.
Slab* HostCache::ToGiveUp(const SlabClass& group, const SlabWriter& writer, std::optional<std::uint64_t> own_used_ms, bool same_domain,
                          bool& held) const {
  std::uint64_t total = 0;
  for (const auto& [client, other] : writers_) total += other->bytes > 0 || other.get() == &writer;
  const std::uint64_t share = config_.host_cache_bytes / std::max<std::uint64_t>(1, total);
  const bool poor = writer.bytes + SlabBytes(group) <= share;
  Slab* best = nullptr;
  for (const auto& slab : slabs_) {
    if (slab->WritableBy(writer) || (same_domain && &slab->group.domain != &group.domain)) continue;
    const bool nobodys = !slab->writer || slab->writer->client == 0;
    const bool older = own_used_ms && slab->used_ms + kMuchOlderMs < *own_used_ms;
    const bool too_rich = !nobodys && poor && slab->writer->bytes > share;
    if (!(nobodys && !own_used_ms) && !older && !too_rich) continue;
    if (best != nullptr && best->used_ms <= slab->used_ms) continue;
    if (slab->group.blocks.pinned_in(slab->position) > 0) {
      held = true;
    } else {
      best = slab.get();
    }
  }
  return best;
}

std::uint64_t HostCache::SlabBytes(const SlabClass& group) const { return group.kind.block_bytes * group.blocks.slots_per_slab(); }

HostCache::Limit HostCache::LimitFor(const SlabClass& group, const SlabWriter& writer) const {
  const std::uint64_t bytes = SlabBytes(group);
  if (config_.max_host_cache_per_client != 0 && writer.bytes + bytes > config_.max_host_cache_per_client) return Limit::kClient;
  const Usage domain = UsageOf(&group.domain);
  if (config_.max_host_cache_per_domain != 0 && domain.bytes + bytes > config_.max_host_cache_per_domain) return Limit::kDomain;
  // Workers need rows of the region table, too.
  if (domain.slabs >= std::max(1u, config_.max_regions / 2)) return Limit::kDomain;
  if (UsageOf(nullptr).bytes + bytes > config_.host_cache_bytes) return Limit::kFull;
  return Limit::kNone;
}

std::string HostCache::Reason(Limit limit) const {
  switch (limit) {
    case Limit::kNone: break;
    case Limit::kClient:
      return "this client's limit of host cache is " + Mib(config_.max_host_cache_per_client) + " (--max-host-cache-per-client)";
    case Limit::kDomain:
      if (config_.max_host_cache_per_domain == 0) return "the host cache has half of the region table (--max-regions)";
      return "this domain's limit of host cache is " + Mib(config_.max_host_cache_per_domain) + " (--max-host-cache-per-domain)";
    case Limit::kFull: return "all of the host cache is others' to write: " + Mib(config_.host_cache_bytes) + " (--host-cache)";
    case Limit::kMachine: return "no memory is left for the host cache (log: host_cache_not_grown)";
  }
  return "";
}

// ---- allocating ---------------------------------------------------------------------------------

bool HostCache::Allocating(const SlabClass& group, const SlabWriter& writer) const {
  return std::any_of(allocating_.begin(), allocating_.end(),
                     [&](const auto& slab) { return &slab->group == &group && slab->WritableBy(writer); });
}

// What has been begun and is not allocated yet, and what others will need.
std::uint64_t HostCache::PromisedBytes() const {
  std::uint64_t bytes = host_.RegistryBytesToCome();
  for (const auto& slab : allocating_) bytes += slab->memory.missing_bytes();
  return bytes;
}

bool HostCache::StartSlab(SlabClass& group, const std::shared_ptr<SlabWriter>& writer) {
  if (now_ < no_memory_until_) return false;
  Result<std::unique_ptr<Slab>> slab = Slab::Create(*this, "host-cache-" + std::to_string(next_name_), group, PromisedBytes());
  if (!slab) {
    no_memory_until_ = now_ + kMemoryPause;
    LogLimited(LogLevel::kWarn, "host_cache_not_grown", {{"reason", slab.error().ToString()}});
    return false;
  }
  ++next_name_;
  ++group.slabs;
  (*slab)->uid = writer->uid;
  (*slab)->writer = writer;
  writer->bytes += (*slab)->bytes();
  allocating_.push_back(std::move(*slab));
  host_.WorkToDo();
  return true;
}

// So that the next offer need not wait.
void HostCache::AllocateAhead(SlabClass& group, const std::shared_ptr<SlabWriter>& writer) {
  std::uint32_t free = 0;
  for (const auto& slab : slabs_) {
    if (&slab->group == &group && slab->WritableBy(*writer)) free += group.blocks.free_in(slab->position);
  }
  if (free > group.blocks.slots_per_slab() / 8 || Allocating(group, *writer) || Abandoned(group, *writer, true) != nullptr) return;
  if (LimitFor(group, *writer) == Limit::kNone) static_cast<void>(StartSlab(group, writer));
}

bool HostCache::Work() {
  if (allocating_.empty()) return false;
  const Result<bool> more = allocating_.front()->memory.AllocateSome(host_.RegistryBytesToCome());
  if (more && *more) return true;
  std::unique_ptr<Slab> slab = std::move(allocating_.front());
  allocating_.pop_front();
  progress_ = true;
  if (more) {
    FinishSlab(std::move(slab));
  } else {
    no_memory_until_ = now_ + kMemoryPause;
    LogLimited(LogLevel::kWarn, "host_cache_not_grown", {{"reason", more.error().ToString()}});
    if (slab->writer && slab->writer->client != 0) slab->writer->bytes -= slab->bytes();
    --slab->group.slabs;
    DropGroupIfEmpty(slab->group);
  }
  return !allocating_.empty();
}

void HostCache::FinishSlab(std::unique_ptr<Slab> slab) {
  SlabClass& group = slab->group;
  const bool writer_left = slab->writer->client == 0;
  const std::uint32_t position = group.blocks.AddSlab();
  if (Status opened = slab->Open(position); !opened) {
    no_memory_until_ = now_ + kMemoryPause;
    LogLimited(LogLevel::kWarn, "host_cache_not_grown", {{"reason", opened.error().ToString()}});
    if (!writer_left) slab->writer->bytes -= slab->bytes();
    group.blocks.RemoveSlab(position);
    --group.slabs;
    return DropGroupIfEmpty(group);
  }
  // It never had the descriptor.
  if (writer_left) slab->writer = nullptr;
  slab->used_ms = SteadyMs(now_);
  LogLimited(
      LogLevel::kInfo, "host_cache_grown",
      {{"domain", group.domain.name()}, {"region", slab->region->descriptor.name()}, {"row", slab->region->row}, {"bytes", slab->bytes()}});
  slabs_.push_back(std::move(slab));
  host_.SlabOpened(*slabs_.back());
  if (!writer_left) host_.SlabGranted(*slabs_.back());
}

// ---- giving up ----------------------------------------------------------------------------------

void HostCache::Close(Slab& slab) {
  SlabClass& group = slab.group;
  counters_[&group.domain].evicted += group.blocks.slots_per_slab() - group.blocks.free_in(slab.position);
  if (slab.writer) {
    std::erase_if(slab.writer->open, [&](const OpenGrant& grant) {
      if (grant.slab != &slab) return false;
      const CacheSlot& slot = group.blocks[grant.slot];
      if (slot.state == CacheSlot::State::kGranted && slot.write == grant.write) --slab.writer->granted;
      return true;
    });
    if (slab.writer->client != 0) slab.writer->bytes -= slab.bytes();
  }
  LogLimited(LogLevel::kInfo, "host_cache_shrunk",
             {{"domain", group.domain.name()}, {"region", slab.region->descriptor.name()}, {"bytes", slab.bytes()}});
  Region& region = *slab.region;
  closing_.push_back({&group.domain, region.row, region.info.region_epoch, slab.bytes()});
  group.blocks.RemoveSlab(slab.position);
  restoring_.erase(&slab);
  slab.GiveUp();
  host_.SlabClosing(group.domain, region);
  --group.slabs;
  std::erase_if(slabs_, [&](const auto& other) { return other.get() == &slab; });
}

void HostCache::DropGroupIfEmpty(SlabClass& group) {
  if (group.slabs == 0) groups_.erase(SlabClass::Kind(group.kind));
}

void HostCache::DropMismatched(Domain& domain, const Region& region) {
  std::vector<Slab*> wrong;
  for (const auto& slab : slabs_) {
    const SlabClass& group = slab->group;
    if (&group.domain != &domain || group.kind.model != region.info.model || group.kind.block_bytes == region.info.block_bytes) continue;
    if (std::equal(group.shard.begin(), group.shard.end(), region.descriptor.shard().begin(), region.descriptor.shard().end()))
      wrong.push_back(slab.get());
  }
  for (Slab* slab : wrong) {
    SlabClass& group = slab->group;
    Close(*slab);
    DropGroupIfEmpty(group);
  }
}

void HostCache::GiveUp(Region& region) {
  auto& slab = *static_cast<Slab*>(region.filler);
  SlabClass& group = slab.group;
  Close(slab);
  DropGroupIfEmpty(group);
}

void HostCache::Forget(Domain& domain) {
  const auto in_domain = [&](const auto& slab) { return &slab->group.domain == &domain; };
  for (const auto& slab : slabs_) {
    if (!in_domain(slab)) continue;
    restoring_.erase(slab.get());
    slab->GiveUp();
  }
  std::erase_if(slabs_, in_domain);
  std::erase_if(allocating_, in_domain);
  std::erase_if(closing_, [&](const Closing& closing) { return closing.domain == &domain; });
  std::erase_if(groups_, [&](const auto& entry) { return &entry.second->domain == &domain; });
  seen_.erase(&domain);
  counters_.erase(&domain);
  progress_ = true;
}

void HostCache::Tick(SteadyTime now) {
  now_ = now;
  for (const auto& [client, writer] : writers_) ExpireGrants(*writer, now);
  std::erase_if(departed_, [&](const std::shared_ptr<SlabWriter>& writer) {
    if (writer->process->Ended()) {
      Departed(*writer);
      progress_ = true;
    }
    // Nobody else knows of it: nothing is left that it could write.
    return writer->gone || writer.use_count() == 1;
  });
  const auto gone = [](const Closing& closing) { return closing.domain->FindRegion(closing.row, closing.region_epoch) == nullptr; };
  if (std::erase_if(closing_, gone) > 0) progress_ = true;
  std::erase_if(groups_, [](const auto& entry) { return entry.second->slabs == 0; });
}

}  // namespace kvm::daemon
