#include "daemon/host_cache/host_cache.h"

#include <algorithm>
#include <unordered_map>

#include "daemon/system/steady_ms.h"
#include "proto/base/fault_point.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
HostCache::~HostCache() {
  for (const auto& slab : slabs_) slab->Close();
}

// ---- offers -------------------------------------------------------------------------------------

std::shared_ptr<SlabWriter> HostCache::WriterOf(const Offerer& offerer, Domain& domain) {
  std::shared_ptr<SlabWriter>& writer = writers_[offerer.client];
  if (writer) return writer;
  writer = Resume(offerer, domain);
  if (writer) return writer;
  writer = std::make_shared<SlabWriter>();
  writer->client = offerer.client;
  writer->uid = offerer.uid;
  writer->pid = offerer.pid;
  writer->instance = offerer.instance;
  writer->domain = &domain;
  return writer;
}

bool HostCache::Admitted(const Domain& domain, const BlockKey& key, bool asked) {
  if (config_.host_cache_admission != HostCacheAdmission::kSecondHit) return true;
  const auto seen = seen_.try_emplace(&domain, config_.max_entries).first;
  return seen->second.Add(key) || asked;
}

HostCache::Decision HostCache::Offer(const Offerer& offerer, Domain& domain, Region& source, std::span<const PublishRecord> records,
                                     bool asked) {
  Decision decision;
  const std::shared_ptr<SlabWriter> writer = WriterOf(offerer, domain);
  ExpireGrants(*writer, now_);
  SlabClass& group = GroupOf(domain, source);
  // Its slots are not known yet.
  if (std::any_of(restoring_.begin(), restoring_.end(), [&](const Slab* slab) { return &slab->group == &group; })) return decision;
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
      if (group.blocks[*slot].state == CacheSlot::State::kStored) present.push_back(*slot);
      continue;
    }
    if (!Admitted(domain, record.key, asked)) {
      ++decision.not_admitted;
      continue;
    }
    std::optional<Place> place;
    if (otherwise != NoPlace::kStored) place = FindPlace(group, writer, record, decision.reason, otherwise);
    if (!place && otherwise == NoPlace::kWait) break;
    if (!place) {
      ++decision.full;
      continue;
    }
    CacheSlot& slot = group.blocks[place->slot];
    const std::uint32_t in_chunk = group.blocks.InSlab(place->slot);
    slot.write = place->slab->BeginWrite(in_chunk);
    slot.checksum = checksum;
    ++writer->granted;
    writer->open.push_back({now_ + std::chrono::milliseconds(config_.offload_timeout_ms), place->slab, place->slot, slot.write});
    decision.grants.push_back({static_cast<std::uint32_t>(decision.decided), place->slab, in_chunk, slot.write});
  }
  counters_[&domain].refused += decision.full;
  // Somebody has computed or fetched them once more.
  Use(group, present, false);
  if (!decision.grants.empty()) AllocateAhead(group, writer);
  DropGroupIfEmpty(group);
  return decision;
}

SlabClass& HostCache::GroupOf(Domain& domain, const Region& source) {
  SlabClass::Kind kind;
  kind.domain = &domain;
  kind.model = source.info.model;
  kind.block_bytes = source.info.block_bytes;
  kind.checksums = source.generations.has_checksums();
  std::vector<std::uint32_t> shard(source.descriptor.shard().begin(), source.descriptor.shard().end());
  for (const std::uint32_t part : shard) kind.shard += std::to_string(part) + ",";
  std::unique_ptr<SlabClass>& group = groups_[kind];
  if (!group) {
    const auto slots = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(slab_bytes_ / kind.block_bytes, 1, kMaxSlotsPerSlab));
    const std::uint64_t most = std::clamp<std::uint64_t>(config_.host_cache_bytes / (slots * kind.block_bytes), 1, config_.max_regions);
    group = std::make_unique<SlabClass>(kind, domain, SlotTable(config_.host_cache_policy, slots, static_cast<std::uint32_t>(most)),
                                        source.descriptor.fingerprint(), std::move(shard));
  }
  return *group;
}

// ---- stores -------------------------------------------------------------------------------------

Slab* HostCache::SlabAt(Domain& domain, std::uint32_t row, std::uint32_t region_epoch) {
  Region* region = domain.FindRegion(row, region_epoch);
  return region == nullptr ? nullptr : static_cast<Slab*>(region->filler);
}

void HostCache::Done(ClientId client, Domain& domain, const kvmwire::CompleteStore& done) {
  const auto writer = writers_.find(client);
  if (writer == writers_.end()) return;
  std::unordered_map<SlabClass*, std::vector<policy::Slot>> stored;
  for (const kvmwire::StoreOutcome& outcome : done.outcomes()) {
    Slab* slab = SlabAt(domain, outcome.region(), outcome.region_epoch());
    if (slab == nullptr || !slab->WritableBy(*writer->second) || outcome.slot() >= slab->group.blocks.slots_per_slab()) continue;
    SlotTable& blocks = slab->group.blocks;
    const policy::Slot at = blocks.SlotAt(slab->position, outcome.slot());
    CacheSlot& slot = blocks[at];
    const bool granted = slot.state == CacheSlot::State::kGranted;
    if ((!granted && slot.state != CacheSlot::State::kExpired) || slot.write != outcome.generation()) continue;
    if (granted) --writer->second->granted;
    // What comes too late is as good, but somebody else may have been granted the same block meanwhile.
    if (granted && outcome.stored() && slab->Publish(outcome.slot(), slot.write, slot.record, slot.checksum)) {
      KVM_FAULT_POINT(kvmd_store_published);
      blocks.Commit(at);
      stored[&slab->group].push_back(at);
      ++counters_[&domain].stored;
    } else {
      blocks.Free(at);
    }
  }
  for (const auto& [group, slots] : stored) Use(*group, slots, false);
  progress_ = true;
}

void HostCache::Use(SlabClass& group, std::span<const policy::Slot> slots, bool imported) {
  if (slots.empty()) return;
  group.blocks.Use(slots, SteadyMs(now_), imported);
  std::vector<bool> used;
  for (const policy::Slot slot : slots) {
    const std::uint32_t position = group.blocks.PositionOf(slot);
    if (used.size() <= position) used.resize(position + 1);
    used[position] = true;
  }
  for (const auto& slab : slabs_) {
    if (&slab->group == &group && slab->position < used.size() && used[slab->position]) slab->used_ms = SteadyMs(now_);
  }
}

void HostCache::Used(Domain& domain, const kvmwire::HostCacheUse& use) {
  std::unordered_map<SlabClass*, std::vector<policy::Slot>> used;
  for (const kvmwire::HostCacheRun& run : use.runs()) {
    Slab* slab = SlabAt(domain, run.region(), run.region_epoch());
    if (slab == nullptr || run.slot() >= slab->group.blocks.slots_per_slab()) continue;
    const policy::Slot at = slab->group.blocks.SlotAt(slab->position, run.slot());
    const CacheSlot& slot = slab->group.blocks[at];
    if (slot.state != CacheSlot::State::kStored) continue;
    counters_[&domain].hits += std::min(run.blocks(), slot.record.depth + 1);
    used[&slab->group].push_back(at);
  }
  // Each run is a request of its own: two of one prefix are two uses.
  for (const auto& [group, slots] : used) {
    for (const policy::Slot& slot : slots) Use(*group, std::span(&slot, 1), true);
  }
}

// ---- what ends ----------------------------------------------------------------------------------

void HostCache::Evict(Slab& slab, policy::Slot slot) {
  KVM_FAULT_POINT(kvmd_evict_begun);
  SlotTable& blocks = slab.group.blocks;
  blocks.Free(slot);
  slab.Unpublish(blocks.InSlab(slot));
  ++counters_[&slab.group.domain].evicted;
}

void HostCache::OnEntryErased(Slab& slab, std::uint32_t slot) noexcept {
  const policy::Slot at = slab.group.blocks.SlotAt(slab.position, slot);
  if (slab.group.blocks[at].state != CacheSlot::State::kStored) return;
  slab.BeginWrite(slot);
  slab.group.blocks.Free(at);
  ++counters_[&slab.group.domain].evicted;
}

void HostCache::ExpireGrants(SlabWriter& writer, SteadyTime now) {
  const auto answered = [](const OpenGrant& grant) {
    const CacheSlot& slot = grant.slab->group.blocks[grant.slot];
    return slot.state != CacheSlot::State::kGranted || slot.write != grant.write;
  };
  for (; !writer.open.empty(); writer.open.pop_front()) {
    const OpenGrant& grant = writer.open.front();
    if (answered(grant)) continue;
    if (now < grant.deadline) break;
    grant.slab->group.blocks.Expire(grant.slot);
    ++counters_[&grant.slab->group.domain].expired;
    --writer.granted;
    progress_ = true;
  }
  // One that is never answered for must not keep the others.
  if (writer.open.size() > 2 * kMaxGrantsPerClient) std::erase_if(writer.open, answered);
}

void HostCache::Leave(ClientId client, std::shared_ptr<WatchedProcess> process) {
  const auto found = writers_.find(client);
  if (found == writers_.end()) return;
  const std::shared_ptr<SlabWriter> writer = std::move(found->second);
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
void HostCache::Departed(SlabWriter& writer) {
  writer.gone = writer.process->Ended();
  for (const auto& slab : slabs_) {
    if (!slab->WritableBy(writer)) continue;
    SlotTable& blocks = slab->group.blocks;
    for (std::uint32_t i = 0; i < blocks.slots_per_slab(); ++i) {
      const policy::Slot at = blocks.SlotAt(slab->position, i);
      if (blocks[at].state == CacheSlot::State::kGranted) blocks.Expire(at);
      if (writer.gone && blocks[at].state == CacheSlot::State::kExpired) blocks.Free(at);
    }
  }
}

// ---- what operators see -------------------------------------------------------------------------

HostCache::Counters HostCache::CountersOf(const Domain& domain) const {
  const auto found = counters_.find(&domain);
  return found == counters_.end() ? Counters{} : found->second;
}

HostCache::Usage HostCache::UsageOf(const Domain* domain) const {
  Usage usage;
  const auto add = [&](const Slab& slab) {
    usage.bytes += slab.bytes();
    usage.huge_bytes += slab.memory.reserved_huge_bytes();
    usage.transparent_bytes += slab.memory.transparent_huge_bytes();
    ++usage.slabs;
  };
  for (const auto& slab : slabs_) {
    if (domain == nullptr || &slab->group.domain == domain) add(*slab);
  }
  for (const auto& slab : allocating_) {
    if (domain == nullptr || &slab->group.domain == domain) add(*slab);
  }
  for (const Closing& closing : closing_) {
    if (domain == nullptr || closing.domain == domain) usage.bytes += closing.bytes;
  }
  for (const auto& [kind, group] : groups_) {
    if (domain != nullptr && &group->domain != domain) continue;
    usage.blocks += group->blocks.stored();
    usage.used_bytes += group->blocks.stored() * kind.block_bytes;
  }
  return usage;
}

std::vector<Slab*> HostCache::SlabsOf(ClientId client) const {
  std::vector<Slab*> slabs;
  const auto found = writers_.find(client);
  for (const auto& slab : slabs_) {
    if (found != writers_.end() && slab->WritableBy(*found->second)) slabs.push_back(slab.get());
  }
  return slabs;
}

std::uint64_t HostCache::BytesOf(ClientId client) const {
  const auto found = writers_.find(client);
  return found == writers_.end() ? 0 : found->second->bytes;
}

}  // namespace kvm::daemon
