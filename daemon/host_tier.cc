#include "daemon/host_tier.h"

#include <algorithm>
#include <unordered_map>

#include "daemon/steady_ms.h"
#include "proto/fault_point.h"
#include "proto/protocol_limits.h"

namespace kvm::daemon {
HostTier::~HostTier() {
  for (const auto& chunk : chunks_) chunk->Close();
}

// ---- offers -------------------------------------------------------------------------------------

std::shared_ptr<TierWriter> HostTier::WriterOf(const Offerer& offerer, Domain& domain) {
  std::shared_ptr<TierWriter>& writer = writers_[offerer.client];
  if (writer) return writer;
  writer = Resume(offerer, domain);
  if (writer) return writer;
  writer = std::make_shared<TierWriter>();
  writer->client = offerer.client;
  writer->uid = offerer.uid;
  writer->pid = offerer.pid;
  writer->instance = offerer.instance;
  writer->domain = &domain;
  return writer;
}

bool HostTier::Admitted(const Domain& domain, const BlockKey& key, bool asked) {
  if (config_.host_cache_admission != HostCacheAdmission::kSecondHit) return true;
  const auto seen = seen_.try_emplace(&domain, config_.max_entries).first;
  return seen->second.Add(key) || asked;
}

HostTier::Decision HostTier::Offer(const Offerer& offerer, Domain& domain, Region& source, std::span<const PublishRecord> records,
                                   bool asked) {
  Decision decision;
  const std::shared_ptr<TierWriter> writer = WriterOf(offerer, domain);
  ExpireGrants(*writer, now_);
  TierGroup& group = GroupOf(domain, source);
  // Its slots are not known yet.
  if (std::any_of(restoring_.begin(), restoring_.end(), [&](const TierChunk* chunk) { return &chunk->group == &group; })) return decision;
  std::vector<policy::Slot> present;
  NoPlace otherwise = NoPlace::kFull;
  for (; decision.decided < records.size(); ++decision.decided) {
    const PublishRecord& record = records[decision.decided];
    const std::uint64_t checksum = group.kind.checksums ? source.generations.Checksum(record.block) : 0;
    if (record.block >= source.info.block_count || !IsReadable(record.generation) ||
        !source.generations.StillValid(record.block, record.generation)) {
      ++decision.stale;
      continue;
    }
    if (const std::optional<policy::Slot> slot = group.blocks.Find(record.key)) {
      decision.present.push_back(static_cast<std::uint32_t>(decision.decided));
      if (group.blocks[*slot].state == TierSlot::State::kHeld) present.push_back(*slot);
      continue;
    }
    if (!Admitted(domain, record.key, asked)) {
      ++decision.not_admitted;
      continue;
    }
    std::optional<Place> place;
    if (otherwise != NoPlace::kHeld) place = FindPlace(group, writer, record, decision.reason, otherwise);
    if (!place && otherwise == NoPlace::kWait) break;
    if (!place) {
      ++decision.full;
      continue;
    }
    TierSlot& slot = group.blocks[place->slot];
    const std::uint32_t in_chunk = group.blocks.InChunk(place->slot);
    slot.write = place->chunk->BeginWrite(in_chunk);
    slot.checksum = checksum;
    ++writer->granted;
    writer->open.push_back({now_ + std::chrono::milliseconds(config_.stow_timeout_ms), place->chunk, place->slot, slot.write});
    decision.grants.push_back({static_cast<std::uint32_t>(decision.decided), place->chunk, in_chunk, slot.write});
  }
  counters_[&domain].refused += decision.full;
  // Somebody has computed or fetched them once more.
  Use(group, present, false);
  if (!decision.grants.empty()) AllocateAhead(group, writer);
  DropGroupIfEmpty(group);
  return decision;
}

TierGroup& HostTier::GroupOf(Domain& domain, const Region& source) {
  TierGroup::Kind kind;
  kind.domain = &domain;
  kind.model = source.info.model;
  kind.block_bytes = source.info.block_bytes;
  kind.checksums = source.generations.has_checksums();
  std::vector<std::uint32_t> shard(source.descriptor.shard().begin(), source.descriptor.shard().end());
  for (const std::uint32_t part : shard) kind.shard += std::to_string(part) + ",";
  std::unique_ptr<TierGroup>& group = groups_[kind];
  if (!group) {
    const auto slots = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(chunk_bytes_ / kind.block_bytes, 1, kMaxSlotsPerChunk));
    const std::uint64_t most = std::clamp<std::uint64_t>(config_.host_cache_bytes / (slots * kind.block_bytes), 1, config_.max_regions);
    group = std::make_unique<TierGroup>(kind, domain, TierBlocks(config_.host_cache_policy, slots, static_cast<std::uint32_t>(most)),
                                        source.descriptor.fingerprint(), std::move(shard));
  }
  return *group;
}

// ---- stores -------------------------------------------------------------------------------------

TierChunk* HostTier::ChunkAt(Domain& domain, std::uint32_t row, std::uint32_t region_epoch) {
  Region* region = domain.FindRegion(row, region_epoch);
  return region == nullptr ? nullptr : static_cast<TierChunk*>(region->keeper);
}

void HostTier::Done(ClientId client, Domain& domain, const kvmwire::StowDone& done) {
  const auto writer = writers_.find(client);
  if (writer == writers_.end()) return;
  std::unordered_map<TierGroup*, std::vector<policy::Slot>> stored;
  for (const kvmwire::StowOutcome& outcome : done.outcomes()) {
    TierChunk* chunk = ChunkAt(domain, outcome.region(), outcome.region_epoch());
    if (chunk == nullptr || !chunk->WritableBy(*writer->second) || outcome.slot() >= chunk->group.blocks.slots_per_chunk()) continue;
    TierBlocks& blocks = chunk->group.blocks;
    const policy::Slot at = blocks.SlotAt(chunk->position, outcome.slot());
    TierSlot& slot = blocks[at];
    const bool granted = slot.state == TierSlot::State::kGranted;
    if ((!granted && slot.state != TierSlot::State::kExpired) || slot.write != outcome.generation()) continue;
    if (granted) --writer->second->granted;
    // What comes too late is as good, but somebody else may have been granted the same block meanwhile.
    if (granted && outcome.stored() && chunk->Publish(outcome.slot(), slot.write, slot.record, slot.checksum)) {
      KVM_FAULT_POINT(kvmd_stow_published);
      blocks.Hold(at);
      stored[&chunk->group].push_back(at);
      ++counters_[&domain].stowed;
    } else {
      blocks.Free(at);
    }
  }
  for (const auto& [group, slots] : stored) Use(*group, slots, false);
  progress_ = true;
}

void HostTier::Use(TierGroup& group, std::span<const policy::Slot> slots, bool imported) {
  if (slots.empty()) return;
  group.blocks.Use(slots, SteadyMs(now_), imported);
  std::vector<bool> used;
  for (const policy::Slot slot : slots) {
    const std::uint32_t position = group.blocks.PositionOf(slot);
    if (used.size() <= position) used.resize(position + 1);
    used[position] = true;
  }
  for (const auto& chunk : chunks_) {
    if (&chunk->group == &group && chunk->position < used.size() && used[chunk->position]) chunk->used_ms = SteadyMs(now_);
  }
}

void HostTier::Used(Domain& domain, const kvmwire::HostCacheUse& use) {
  std::unordered_map<TierGroup*, std::vector<policy::Slot>> used;
  for (const kvmwire::HostCacheRun& run : use.runs()) {
    TierChunk* chunk = ChunkAt(domain, run.region(), run.region_epoch());
    if (chunk == nullptr || run.slot() >= chunk->group.blocks.slots_per_chunk()) continue;
    const policy::Slot at = chunk->group.blocks.SlotAt(chunk->position, run.slot());
    const TierSlot& slot = chunk->group.blocks[at];
    if (slot.state != TierSlot::State::kHeld) continue;
    counters_[&domain].hits += std::min(run.blocks(), slot.record.depth + 1);
    used[&chunk->group].push_back(at);
  }
  // Each run is a request of its own: two of one prefix are two uses.
  for (const auto& [group, slots] : used) {
    for (const policy::Slot& slot : slots) Use(*group, std::span(&slot, 1), true);
  }
}

// ---- what ends ----------------------------------------------------------------------------------

void HostTier::Evict(TierChunk& chunk, policy::Slot slot) {
  KVM_FAULT_POINT(kvmd_evict_begun);
  TierBlocks& blocks = chunk.group.blocks;
  blocks.Free(slot);
  chunk.Unpublish(blocks.InChunk(slot));
  ++counters_[&chunk.group.domain].evicted;
}

void HostTier::OnEntryErased(TierChunk& chunk, std::uint32_t slot) noexcept {
  const policy::Slot at = chunk.group.blocks.SlotAt(chunk.position, slot);
  if (chunk.group.blocks[at].state != TierSlot::State::kHeld) return;
  chunk.BeginWrite(slot);
  chunk.group.blocks.Free(at);
  ++counters_[&chunk.group.domain].evicted;
}

void HostTier::ExpireGrants(TierWriter& writer, SteadyTime now) {
  const auto answered = [](const OpenGrant& grant) {
    const TierSlot& slot = grant.chunk->group.blocks[grant.slot];
    return slot.state != TierSlot::State::kGranted || slot.write != grant.write;
  };
  for (; !writer.open.empty(); writer.open.pop_front()) {
    const OpenGrant& grant = writer.open.front();
    if (answered(grant)) continue;
    if (now < grant.deadline) break;
    grant.chunk->group.blocks.Expire(grant.slot);
    ++counters_[&grant.chunk->group.domain].expired;
    --writer.granted;
    progress_ = true;
  }
  // One that is never answered for must not keep the others.
  if (writer.open.size() > 2 * kMaxGrantsPerClient) std::erase_if(writer.open, answered);
}

void HostTier::Leave(ClientId client, std::shared_ptr<WatchedProcess> process) {
  const auto found = writers_.find(client);
  if (found == writers_.end()) return;
  const std::shared_ptr<TierWriter> writer = std::move(found->second);
  writers_.erase(found);
  writer->client = 0;
  writer->bytes = 0;
  writer->process = std::move(process);
  writer->open.clear();
  Departed(*writer);
  if (!writer->gone) departed_.push_back(writer);
  progress_ = true;
}

// What it was granted is not stored any more. The slots are free once it can't write them.
void HostTier::Departed(TierWriter& writer) {
  writer.gone = writer.process->Ended();
  for (const auto& chunk : chunks_) {
    if (!chunk->WritableBy(writer)) continue;
    TierBlocks& blocks = chunk->group.blocks;
    for (std::uint32_t i = 0; i < blocks.slots_per_chunk(); ++i) {
      const policy::Slot at = blocks.SlotAt(chunk->position, i);
      if (blocks[at].state == TierSlot::State::kGranted) blocks.Expire(at);
      if (writer.gone && blocks[at].state == TierSlot::State::kExpired) blocks.Free(at);
    }
  }
}

// ---- what operators see -------------------------------------------------------------------------

HostTier::Counters HostTier::CountersOf(const Domain& domain) const {
  const auto found = counters_.find(&domain);
  return found == counters_.end() ? Counters{} : found->second;
}

HostTier::Usage HostTier::UsageOf(const Domain* domain) const {
  Usage usage;
  const auto add = [&](const TierChunk& chunk) {
    usage.bytes += chunk.bytes();
    usage.huge_bytes += chunk.memory.reserved_huge_bytes();
    usage.transparent_bytes += chunk.memory.transparent_huge_bytes();
    ++usage.chunks;
  };
  for (const auto& chunk : chunks_) {
    if (domain == nullptr || &chunk->group.domain == domain) add(*chunk);
  }
  for (const auto& chunk : allocating_) {
    if (domain == nullptr || &chunk->group.domain == domain) add(*chunk);
  }
  for (const Closing& closing : closing_) {
    if (domain == nullptr || closing.domain == domain) usage.bytes += closing.bytes;
  }
  for (const auto& [kind, group] : groups_) {
    if (domain != nullptr && &group->domain != domain) continue;
    usage.blocks += group->blocks.held();
    usage.used_bytes += group->blocks.held() * kind.block_bytes;
  }
  return usage;
}

std::vector<TierChunk*> HostTier::ChunksOf(ClientId client) const {
  std::vector<TierChunk*> chunks;
  const auto found = writers_.find(client);
  for (const auto& chunk : chunks_) {
    if (found != writers_.end() && chunk->WritableBy(*found->second)) chunks.push_back(chunk.get());
  }
  return chunks;
}

std::uint64_t HostTier::BytesOf(ClientId client) const {
  const auto found = writers_.find(client);
  return found == writers_.end() ? 0 : found->second->bytes;
}

}  // namespace kvm::daemon
