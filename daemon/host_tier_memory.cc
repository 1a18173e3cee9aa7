// Where the host cache's chunks come from, and who gives one up.
//
// A writer that has no free slot gets, in this order: a chunk that nobody can write any more; new memory, while the
// size, the quotas and the machine allow it; memory of a chunk that others have not used for long, or that is above
// their share; the slot of a block of its own, which the policy chooses.
#include <algorithm>

#include "daemon/host_tier.h"
#include "daemon/log.h"
#include "daemon/machine_memory.h"
#include "daemon/steady_ms.h"

namespace kvm::daemon {
namespace {

// By how much the content of a chunk must be older than what a writer would evict of its own: taking a chunk costs its
// content and the zeroing of as much memory.
constexpr std::uint64_t kMuchOlderMs = 10'000;
constexpr std::uint64_t kOthersPart = 16;         // of the machine's memory is never the cache's
constexpr std::chrono::seconds kMemoryPause{10};  // after the machine had none left

std::string Mib(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

}  // namespace

std::uint64_t HostCacheChunkBytes(const Config& config) noexcept {
  constexpr std::uint64_t kLeast = std::uint64_t{64} << 20, kMost = std::uint64_t{1} << 30, kChunks = 64, kFewestChunks = 16;
  if (config.host_cache_chunk_bytes != 0) return std::min(config.host_cache_chunk_bytes, config.host_cache_bytes);
  return std::min(std::clamp(config.host_cache_bytes / kChunks, kLeast, kMost), config.host_cache_bytes / kFewestChunks);
}

Status CheckHostCache(const Config& config) {
  if (config.host_cache_bytes == 0) return {};
  const std::uint64_t usable = UsableMemoryBytes(), most = usable - usable / kOthersPart;
  if (config.host_cache_bytes > most) {
    return MakeError(Errc::kInvalidArgument, "--host-cache: " + Mib(config.host_cache_bytes) + " are asked for, " + Mib(most) +
                                                 " of this machine's (or control group's) " + Mib(usable) + " are the most");
  }
  const std::uint64_t chunk = HostCacheChunkBytes(config);
  for (const auto& [bytes, option] : {std::pair(config.max_host_cache_per_domain, "--max-host-cache-per-domain"),
                                      std::pair(config.max_host_cache_per_client, "--max-host-cache-per-client")}) {
    if (bytes != 0 && bytes < chunk) {
      return MakeError(Errc::kInvalidArgument, std::string(option) + ": " + std::to_string(bytes) +
                                                   " bytes are less than a chunk of the host cache, " + std::to_string(chunk) +
                                                   " bytes (--host-cache-chunk)");
    }
  }
  return {};
}

HostTier::HostTier(const Config& config, TierHost& host) : config_(config), host_(host), chunk_bytes_(HostCacheChunkBytes(config)) {}

// ---- a place for a block ------------------------------------------------------------------------

std::optional<HostTier::Place> HostTier::FindPlace(TierGroup& group, const std::shared_ptr<TierWriter>& writer, const PublishRecord& record,
                                                   std::string& reason, NoPlace& otherwise) {
  otherwise = NoPlace::kFull;
  if (writer->granted >= kMaxGrantsPerClient) {
    reason = "too many blocks are granted to this client and not stored yet";
    return std::nullopt;
  }
  const auto take = [&](TierChunk& chunk) -> std::optional<Place> {
    const std::optional<policy::Slot> slot = group.blocks.Grant(chunk.position, record);
    return slot ? std::optional(Place{&chunk, *slot}) : std::nullopt;
  };
  bool has_chunk = false;
  for (const auto& chunk : chunks_) {
    if (&chunk->group != &group || !chunk->WritableBy(*writer)) continue;
    has_chunk = true;
    if (const auto place = take(*chunk)) return place;
  }
  if (TierChunk* chunk = Abandoned(group, *writer, /*with_room=*/true)) {
    Adopt(*chunk, writer);
    return take(*chunk);
  }
  Limit limit = LimitFor(group, *writer);
  if (limit == Limit::kNone) {
    if (Allocating(group, *writer) || StartChunk(group, writer)) {
      otherwise = NoPlace::kWait;
      return std::nullopt;
    }
    limit = Limit::kMachine;
  }
  if (TierChunk* chunk = Abandoned(group, *writer, /*with_room=*/false)) {
    Adopt(*chunk, writer);
    has_chunk = true;
  }
  bool held = false;
  const std::optional<policy::Slot> own = has_chunk ? OwnVictim(group, *writer, record) : std::nullopt;
  if ((limit == Limit::kFull || limit == Limit::kDomain) && closing_.empty()) {
    const auto used_ms = own ? std::optional(group.blocks[*own].used_ms) : std::nullopt;
    if (TierChunk* chunk = ToGiveUp(group, *writer, used_ms, limit == Limit::kDomain, held)) Close(*chunk);
  }
  if (!own) {
    // Memory that others are giving up comes soon, and so do blocks that can be evicted once they are stored.
    if ((!closing_.empty() && limit != Limit::kClient) || (has_chunk && writer->granted > 0)) otherwise = NoPlace::kWait;
    reason = Reason(limit);
    if (otherwise == NoPlace::kFull && (held || HoldsPinned(group, *writer))) {
      otherwise = NoPlace::kHeld;
      reason = "held: leases keep the blocks that could make room (kvctl leases)";
    }
    return std::nullopt;
  }
  for (const auto& chunk : chunks_) {
    if (&chunk->group != &group || chunk->position != group.blocks.PositionOf(*own)) continue;
    Evict(*chunk, *own);
    return take(*chunk);
  }
  return std::nullopt;
}

std::optional<policy::Slot> HostTier::OwnVictim(TierGroup& group, const TierWriter& writer, const PublishRecord& wanted) {
  std::vector<std::uint32_t> positions;
  for (const auto& chunk : chunks_) {
    if (&chunk->group == &group && chunk->WritableBy(writer)) positions.push_back(chunk->position);
  }
  return group.blocks.ChooseVictim(positions, wanted);
}

bool HostTier::HoldsPinned(const TierGroup& group, const TierWriter& writer) const {
  return std::any_of(chunks_.begin(), chunks_.end(), [&](const auto& chunk) {
    return &chunk->group == &group && chunk->WritableBy(writer) && group.blocks.pinned_in(chunk->position) > 0;
  });
}

// ---- whose memory -------------------------------------------------------------------------------

TierChunk* HostTier::Abandoned(const TierGroup& group, const TierWriter& writer, bool with_room) const {
  TierChunk* best = nullptr;
  for (const auto& chunk : chunks_) {
    if (&chunk->group != &group || !chunk->abandoned() || chunk->uid != writer.uid) continue;
    if (config_.max_host_cache_per_client != 0 && writer.bytes + chunk->bytes() > config_.max_host_cache_per_client) continue;
    if (with_room && group.blocks.free_in(chunk->position) == 0) continue;
    if (best == nullptr || group.blocks.free_in(chunk->position) > group.blocks.free_in(best->position)) best = chunk.get();
  }
  return best;
}

void HostTier::Adopt(TierChunk& chunk, const std::shared_ptr<TierWriter>& writer) {
  chunk.writer = writer;
  writer->bytes += chunk.bytes();
  host_.ChunkGranted(chunk);
}

// Chunks of a dead or departed writer's, those much older than what this one would evict, and those of a writer above
// its share, if this one is below: the one that was used least recently.
TierChunk* HostTier::ToGiveUp(const TierGroup& group, const TierWriter& writer, std::optional<std::uint64_t> own_used_ms, bool same_domain,
                              bool& held) const {
  std::uint64_t total = 0;
  for (const auto& [client, other] : writers_) total += other->bytes > 0 || other.get() == &writer;
  const std::uint64_t share = config_.host_cache_bytes / std::max<std::uint64_t>(1, total);
  const bool poor = writer.bytes + ChunkBytes(group) <= share;
  TierChunk* best = nullptr;
  for (const auto& chunk : chunks_) {
    if (chunk->WritableBy(writer) || (same_domain && &chunk->group.domain != &group.domain)) continue;
    const bool nobodys = !chunk->writer || chunk->writer->client == 0;
    const bool older = own_used_ms && chunk->used_ms + kMuchOlderMs < *own_used_ms;
    const bool too_rich = !nobodys && poor && chunk->writer->bytes > share;
    if (!(nobodys && !own_used_ms) && !older && !too_rich) continue;
    if (best != nullptr && best->used_ms <= chunk->used_ms) continue;
    if (chunk->group.blocks.pinned_in(chunk->position) > 0) {
      held = true;
    } else {
      best = chunk.get();
    }
  }
  return best;
}

std::uint64_t HostTier::ChunkBytes(const TierGroup& group) const { return group.kind.block_bytes * group.blocks.slots_per_chunk(); }

HostTier::Limit HostTier::LimitFor(const TierGroup& group, const TierWriter& writer) const {
  const std::uint64_t bytes = ChunkBytes(group);
  if (config_.max_host_cache_per_client != 0 && writer.bytes + bytes > config_.max_host_cache_per_client) return Limit::kClient;
  const Usage domain = UsageOf(&group.domain);
  if (config_.max_host_cache_per_domain != 0 && domain.bytes + bytes > config_.max_host_cache_per_domain) return Limit::kDomain;
  // Workers need rows of the region table, too.
  if (domain.chunks >= std::max(1u, config_.max_regions / 2)) return Limit::kDomain;
  if (UsageOf(nullptr).bytes + bytes > config_.host_cache_bytes) return Limit::kFull;
  return Limit::kNone;
}

std::string HostTier::Reason(Limit limit) const {
  switch (limit) {
    case Limit::kNone: break;
    case Limit::kClient:
      return "this client's limit of host cache is " + Mib(config_.max_host_cache_per_client) + " (--max-host-cache-per-client)";
    case Limit::kDomain:
      if (config_.max_host_cache_per_domain == 0) return "the host cache has half of the region table (--max-regions)";
      return "this domain's limit of host cache is " + Mib(config_.max_host_cache_per_domain) + " (--max-host-cache-per-domain)";
    case Limit::kFull: return "all of the host cache is others' to write: " + Mib(config_.host_cache_bytes) + " (--host-cache)";
    case Limit::kMachine: return "the machine has no memory left for the host cache";
  }
  return "";
}

// ---- allocating ---------------------------------------------------------------------------------

bool HostTier::Allocating(const TierGroup& group, const TierWriter& writer) const {
  return std::any_of(allocating_.begin(), allocating_.end(),
                     [&](const auto& chunk) { return &chunk->group == &group && chunk->WritableBy(writer); });
}

bool HostTier::StartChunk(TierGroup& group, const std::shared_ptr<TierWriter>& writer) {
  if (now_ < no_memory_until_) return false;
  Result<std::unique_ptr<TierChunk>> chunk = TierChunk::Create(*this, "host-cache-" + std::to_string(next_name_), group);
  if (!chunk) {
    no_memory_until_ = now_ + kMemoryPause;
    LogLimited(LogLevel::kWarn, "host_cache_not_grown", {{"reason", chunk.error().ToString()}});
    return false;
  }
  ++next_name_;
  ++group.chunks;
  (*chunk)->uid = writer->uid;
  (*chunk)->writer = writer;
  writer->bytes += (*chunk)->bytes();
  allocating_.push_back(std::move(*chunk));
  host_.WorkToDo();
  return true;
}

// So that the next offer need not wait.
void HostTier::AllocateAhead(TierGroup& group, const std::shared_ptr<TierWriter>& writer) {
  std::uint32_t free = 0;
  for (const auto& chunk : chunks_) {
    if (&chunk->group == &group && chunk->WritableBy(*writer)) free += group.blocks.free_in(chunk->position);
  }
  if (free > group.blocks.slots_per_chunk() / 8 || Allocating(group, *writer) || Abandoned(group, *writer, true) != nullptr) return;
  if (LimitFor(group, *writer) == Limit::kNone) static_cast<void>(StartChunk(group, writer));
}

bool HostTier::Work() {
  if (allocating_.empty()) return false;
  const Result<bool> more = allocating_.front()->memory.AllocateSome();
  if (more && *more) return true;
  std::unique_ptr<TierChunk> chunk = std::move(allocating_.front());
  allocating_.pop_front();
  progress_ = true;
  if (more) {
    FinishChunk(std::move(chunk));
  } else {
    no_memory_until_ = now_ + kMemoryPause;
    LogLimited(LogLevel::kWarn, "host_cache_not_grown", {{"reason", more.error().ToString()}});
    if (chunk->writer && chunk->writer->client != 0) chunk->writer->bytes -= chunk->bytes();
    --chunk->group.chunks;
    DropGroupIfEmpty(chunk->group);
  }
  return !allocating_.empty();
}

void HostTier::FinishChunk(std::unique_ptr<TierChunk> chunk) {
  TierGroup& group = chunk->group;
  const bool writer_left = chunk->writer->client == 0;
  const std::uint32_t position = group.blocks.AddChunk();
  if (Status opened = chunk->Open(position); !opened) {
    no_memory_until_ = now_ + kMemoryPause;
    LogLimited(LogLevel::kWarn, "host_cache_not_grown", {{"reason", opened.error().ToString()}});
    if (!writer_left) chunk->writer->bytes -= chunk->bytes();
    group.blocks.RemoveChunk(position);
    --group.chunks;
    return DropGroupIfEmpty(group);
  }
  // It never had the descriptor.
  if (writer_left) chunk->writer = nullptr;
  chunk->used_ms = SteadyMs(now_);
  LogLimited(LogLevel::kInfo, "host_cache_grown",
             {{"domain", group.domain.name()},
              {"region", chunk->region->descriptor.name()},
              {"row", chunk->region->row},
              {"bytes", chunk->bytes()}});
  chunks_.push_back(std::move(chunk));
  host_.ChunkOpened(*chunks_.back());
  if (!writer_left) host_.ChunkGranted(*chunks_.back());
}

// ---- giving up ----------------------------------------------------------------------------------

void HostTier::Close(TierChunk& chunk) {
  TierGroup& group = chunk.group;
  counters_[&group.domain].evicted += group.blocks.slots_per_chunk() - group.blocks.free_in(chunk.position);
  if (chunk.writer) {
    std::erase_if(chunk.writer->open, [&](const OpenGrant& grant) {
      if (grant.chunk != &chunk) return false;
      const TierSlot& slot = group.blocks[grant.slot];
      if (slot.state == TierSlot::State::kGranted && slot.write == grant.write) --chunk.writer->granted;
      return true;
    });
    if (chunk.writer->client != 0) chunk.writer->bytes -= chunk.bytes();
  }
  LogLimited(LogLevel::kInfo, "host_cache_shrunk",
             {{"domain", group.domain.name()}, {"region", chunk.region->descriptor.name()}, {"bytes", chunk.bytes()}});
  Region& region = *chunk.region;
  closing_.push_back({&group.domain, region.row, region.info.region_epoch, chunk.bytes()});
  group.blocks.RemoveChunk(chunk.position);
  restoring_.erase(&chunk);
  chunk.GiveUp();
  host_.ChunkClosing(group.domain, region);
  --group.chunks;
  std::erase_if(chunks_, [&](const auto& other) { return other.get() == &chunk; });
}

void HostTier::DropGroupIfEmpty(TierGroup& group) {
  if (group.chunks == 0) groups_.erase(TierGroup::Kind(group.kind));
}

void HostTier::DropMismatched(Domain& domain, const Region& region) {
  std::vector<TierChunk*> wrong;
  for (const auto& chunk : chunks_) {
    const TierGroup& group = chunk->group;
    if (&group.domain != &domain || group.kind.model != region.info.model || group.kind.block_bytes == region.info.block_bytes) continue;
    if (std::equal(group.shard.begin(), group.shard.end(), region.descriptor.shard().begin(), region.descriptor.shard().end()))
      wrong.push_back(chunk.get());
  }
  for (TierChunk* chunk : wrong) {
    TierGroup& group = chunk->group;
    Close(*chunk);
    DropGroupIfEmpty(group);
  }
}

void HostTier::Forget(Domain& domain) {
  const auto in_domain = [&](const auto& chunk) { return &chunk->group.domain == &domain; };
  for (const auto& chunk : chunks_) {
    if (!in_domain(chunk)) continue;
    restoring_.erase(chunk.get());
    chunk->GiveUp();
  }
  std::erase_if(chunks_, in_domain);
  std::erase_if(allocating_, in_domain);
  std::erase_if(closing_, [&](const Closing& closing) { return closing.domain == &domain; });
  std::erase_if(groups_, [&](const auto& entry) { return &entry.second->domain == &domain; });
  seen_.erase(&domain);
  counters_.erase(&domain);
  progress_ = true;
}

void HostTier::Tick(SteadyTime now) {
  now_ = now;
  for (const auto& [client, writer] : writers_) ExpireGrants(*writer, now);
  std::erase_if(departed_, [&](const std::shared_ptr<TierWriter>& writer) {
    if (writer->process->Ended()) {
      Departed(*writer);
      progress_ = true;
    }
    // Nobody else knows of it: nothing is left that it could write.
    return writer->gone || writer.use_count() == 1;
  });
  const auto gone = [](const Closing& closing) { return closing.domain->FindRegion(closing.row, closing.region_epoch) == nullptr; };
  if (std::erase_if(closing_, gone) > 0) progress_ = true;
  std::erase_if(groups_, [](const auto& entry) { return entry.second->chunks == 0; });
}

}  // namespace kvm::daemon
