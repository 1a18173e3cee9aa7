#include "daemon/host_cache/slab_pool.h"

#include <algorithm>

#include "daemon/host_cache/host_cache_size.h"
#include "daemon/system/log.h"
#include "daemon/system/steady_ms.h"
#include "proto/base/fault_point.h"

namespace kvm::daemon {

void HostCacheUsage::Add(const Slab& slab) noexcept {
  bytes += slab.cost();
  huge_bytes += slab.memory.reserved_huge_bytes();
  transparent_bytes += slab.memory.transparent_huge_bytes();
  ++slabs;
}

SlabPool::SlabPool(const Config& config, HostCacheEvents& host, HostCacheCounters& counters, MemoryFreer& freer)
    : config_(config), host_(host), counters_(counters), freer_(freer), slab_bytes_(HostCacheSlabBytes(config)) {}

SlabPool::~SlabPool() {
  for (const auto& slab : slabs_) slab->Close();
}

// ---- classes and slabs --------------------------------------------------------------------------

SlabClass& SlabPool::ClassOf(Domain& domain, const Region& source) {
  SlabClass::Kind kind;
  kind.domain = &domain;
  kind.model = source.info.model;
  kind.block_bytes = source.info.block_bytes;
  kind.checksums = source.generations.has_checksums();
  std::vector<std::uint32_t> shard(source.descriptor.shard().begin(), source.descriptor.shard().end());
  for (const std::uint32_t part : shard) kind.shard += std::to_string(part) + ",";
  std::unique_ptr<SlabClass>& group = classes_[kind];
  if (!group) {
    const auto slots = static_cast<std::uint32_t>(
        std::clamp<std::uint64_t>(slab_bytes_ / std::max(kind.block_bytes, SlotTable::kBytesPerSlot), 1, kMaxSlotsPerSlab));
    const std::uint64_t most =
        std::clamp<std::uint64_t>(config_.host_cache_bytes / (slots * kind.block_bytes), 1, domain.config().max_regions);
    group = std::make_unique<SlabClass>(kind, domain, SlotTable(config_.host_cache_policy, slots, static_cast<std::uint32_t>(most), freer_),
                                        source.descriptor.fingerprint(), std::move(shard));
  }
  return *group;
}

void SlabPool::DropIfEmpty(SlabClass& group) {
  if (group.slabs != 0) return;
  const std::size_t bytes = group.blocks.bytes();
  std::unique_ptr<SlabClass> dropped = std::move(classes_.extract(group.kind).mapped());
  freer_.Destroy(std::move(dropped), bytes);
}

void SlabPool::DropEmptyClasses() {
  for (auto at = classes_.begin(); at != classes_.end();) DropIfEmpty(*(at++)->second);
}

Slab* SlabPool::Find(Domain& domain, std::uint32_t row, std::uint32_t region_epoch) const {
  Region* region = domain.FindRegion(row, region_epoch);
  return region == nullptr ? nullptr : static_cast<Slab*>(region->filler);
}

Slab& SlabPool::Holding(const SlabClass& group, policy::Slot slot) const {
  return **std::find_if(slabs_.begin(), slabs_.end(),
                        [&](const auto& slab) { return &slab->group == &group && slab->position == group.blocks.PositionOf(slot); });
}

bool SlabPool::Restoring(const SlabClass& group) const {
  return std::any_of(slabs_.begin(), slabs_.end(), [&](const auto& slab) { return slab->restoring && &slab->group == &group; });
}

Slab& SlabPool::Add(std::unique_ptr<Slab> slab) {
  slabs_.push_back(std::move(slab));
  return *slabs_.back();
}

void SlabPool::Close(Slab& slab) {
  SlabClass& group = slab.group;
  counters_[group.domain].evicted += group.blocks.slots_per_slab() - group.blocks.free_in(slab.position);
  if (slab.writer) {
    std::erase_if(slab.writer->open, [&](const OpenGrant& grant) {
      if (grant.slab != &slab) return false;
      const CacheSlot& slot = group.blocks[grant.slot];
      if (slot.state == CacheSlot::State::kGranted && slot.write == grant.write) --slab.writer->granted;
      return true;
    });
    if (slab.writer->client != 0) slab.writer->bytes -= slab.cost();
  }
  LogLimited(LogLevel::kInfo, "host_cache_shrunk",
             {{"domain", group.domain.name()}, {"region", slab.region->descriptor.name()}, {"bytes", slab.bytes()}});
  Region& region = *slab.region;
  closing_.push_back({&group.domain, region.row, region.info.region_epoch, slab.bytes(), slab.uid, std::move(slab.memory)});
  group.blocks.RemoveSlab(slab.position);
  slab.GiveUp();
  host_.SlabClosing(group.domain, region);
  --group.slabs;
  std::erase_if(slabs_, [&](const auto& other) { return other.get() == &slab; });
}

void SlabPool::GiveUp(Slab& slab) {
  SlabClass& group = slab.group;
  Close(slab);
  DropIfEmpty(group);
}

void SlabPool::DropMismatched(Domain& domain, const Region& region) {
  for (const auto& slab : slabs_) {
    const SlabClass& group = slab->group;
    if (&group.domain != &domain || slab->uid != region.info.owner_uid || group.kind.model != region.info.model ||
        group.kind.block_bytes == region.info.block_bytes)
      continue;
    if (std::equal(group.shard.begin(), group.shard.end(), region.descriptor.shard().begin(), region.descriptor.shard().end()))
      slab->unwanted = true;
  }
  if (CloseUnwanted(WorkBudget())) host_.WorkToDo();
}

bool SlabPool::CloseUnwanted(const WorkBudget& budget) {
  for (;;) {
    const auto found = std::find_if(slabs_.begin(), slabs_.end(), [](const auto& slab) { return slab->unwanted; });
    if (found == slabs_.end()) return false;
    if (budget.used_up()) return true;
    GiveUp(**found);
  }
}

bool SlabPool::Work(const WorkBudget& budget) {
  if (CloseUnwanted(budget)) return true;
  for (const auto& [kind, group] : classes_) {
    if (group->blocks.Work(budget)) return true;
  }
  for (auto closing = closing_.begin(); closing != closing_.end();) {
    if (!closing->emptying) {
      ++closing;
      continue;
    }
    if (budget.used_up()) return true;
    if (closing->memory.EmptySome()) continue;
    closing = closing_.erase(closing);
    NoteProgress();
  }
  return false;
}

bool SlabPool::GiveUpAll(const Domain& domain, const WorkBudget& budget) {
  bool left = false;
  for (const auto& slab : slabs_) {
    if (&slab->group.domain != &domain) continue;
    left = slab->unwanted = true;
  }
  return !left || !CloseUnwanted(budget);
}

void SlabPool::Forget(const Domain& domain) {
  for (Closing& closing : closing_) {
    if (closing.domain != &domain) continue;
    closing.domain = nullptr;
    closing.emptying = true;
  }
  DropEmptyClasses();  // all of the domain are
  host_.WorkToDo();
  NoteProgress();
}

void SlabPool::Empty(Slab& slab) {
  closing_.push_back({nullptr, 0, 0, slab.bytes(), slab.uid, std::move(slab.memory), true});
  host_.WorkToDo();
}

void SlabPool::Tick() {
  for (Closing& closing : closing_) {
    if (closing.emptying || closing.domain->FindRegion(closing.row, closing.region_epoch) != nullptr) continue;
    closing.emptying = true;
    host_.WorkToDo();
  }
  DropEmptyClasses();
}

// ---- blocks -------------------------------------------------------------------------------------

void SlabPool::Evict(Slab& slab, policy::Slot slot) {
  KVM_FAULT_POINT(kvmd_evict_begun);
  SlotTable& blocks = slab.group.blocks;
  blocks.Free(slot);
  slab.Unpublish(blocks.InSlab(slot));
  slab.ZeroSlot(blocks.InSlab(slot));
  ++counters_[slab.group.domain].evicted;
}

void SlabPool::OnEntryErased(Slab& slab, std::uint32_t slot) noexcept {
  const policy::Slot at = slab.group.blocks.SlotAt(slab.position, slot);
  if (slab.group.blocks[at].state != CacheSlot::State::kStored) return;
  slab.BeginWrite(slot);
  slab.FreeSlot(slot);
  ++counters_[slab.group.domain].evicted;
}

void SlabPool::Use(SlabClass& group, std::span<const policy::Slot> slots, bool imported, SteadyTime now) {
  if (slots.empty()) return;
  group.blocks.Use(slots, SteadyMs(now), imported);
  std::vector<bool> used;
  for (const policy::Slot slot : slots) {
    const std::uint32_t position = group.blocks.PositionOf(slot);
    if (used.size() <= position) used.resize(position + 1);
    used[position] = true;
  }
  for (const auto& slab : slabs_) {
    if (&slab->group == &group && slab->position < used.size() && used[slab->position]) slab->used_ms = SteadyMs(now);
  }
}

std::uint64_t SlabPool::BytesOf(std::uint32_t uid) const {
  std::uint64_t bytes = 0;
  for (const auto& slab : slabs_) bytes += slab->uid == uid ? slab->cost() : 0;
  for (const Closing& closing : closing_) bytes += closing.uid == uid ? closing.bytes : 0;
  return bytes;
}

void SlabPool::Count(const Domain* domain, HostCacheUsage& usage) const {
  for (const auto& slab : slabs_) {
    if (domain == nullptr || &slab->group.domain == domain) usage.Add(*slab);
  }
  for (const Closing& closing : closing_) {
    if (domain == nullptr || closing.domain == domain) usage.bytes += closing.bytes;
  }
  for (const auto& [kind, group] : classes_) {
    if (domain != nullptr && &group->domain != domain) continue;
    usage.blocks += group->blocks.stored();
    usage.used_bytes += group->blocks.stored() * kind.block_bytes;
  }
}

}  // namespace kvm::daemon
