#include "daemon/host_cache/host_cache.h"

#include <unordered_map>

#include "proto/base/fault_point.h"

namespace kvm::daemon {
namespace {

// To take one block out of its slot, the policy and the index; its memory counts for itself.
constexpr WorkUnits kEvictUnits = 4;

}  // namespace

HostCache::HostCache(const Config& config, HostCacheEvents& host, HugePageMaker& huge_pages, MemoryFreer& freer)
    : config_(config),
      freer_(freer),
      pool_(config, host, counters_, freer),
      writers_(pool_, host, counters_),
      allocator_(pool_, host, huge_pages),
      quota_(config, host, pool_, allocator_),
      places_(config, host, pool_, writers_, allocator_, quota_),
      restore_(pool_, writers_, allocator_, quota_) {}

bool HostCache::Admitted(const Domain& domain, const BlockKey& key, bool asked) {
  if (config_.host_cache_admission != HostCacheAdmission::kSecondHit) return true;
  const auto seen = seen_.try_emplace(&domain, domain.config().max_entries).first;
  return seen->second.Add(key) || asked;
}

HostCache::Decision HostCache::Offer(const Offerer& offerer, Domain& domain, Region& source, std::span<const PublishRecord> records,
                                     bool asked) {
  Decision decision;
  const std::shared_ptr<SlabWriter> writer = writers_.Of(offerer, domain);
  // What it was granted on an earlier connection comes first.
  if (writer->clearing) return decision;
  writers_.ExpireGrants(*writer, now_);
  SlabClass& group = pool_.ClassOf(domain, source);
  // Offers wait, since the blocks in the class's slots are not known yet.
  if (pool_.Restoring(group)) return decision;
  std::vector<policy::Slot> present;
  Placement place;
  const WorkBudget budget;
  for (; decision.decided < records.size() && (decision.decided == 0 || !budget.used_up()); ++decision.decided) {
    Spend(1);
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
    if (group.blocks.HalfTaken(record.key) || !Admitted(domain, record.key, asked)) {
      ++decision.not_admitted;
      continue;
    }
    if (place.outcome != Placement::Outcome::kLeased) place = places_.Find(group, writer, record, now_);
    if (place.outcome == Placement::Outcome::kWait) break;
    if (place.outcome != Placement::Outcome::kFound) {
      decision.reason = place.reason;
      ++decision.full;
      continue;
    }
    CacheSlot& slot = group.blocks[place.slot];
    const std::uint32_t in_slab = group.blocks.InSlab(place.slot);
    slot.write = place.slab->BeginWrite(in_slab);
    slot.checksum = checksum;
    ++writer->granted;
    writer->open.push_back({now_ + std::chrono::milliseconds(config_.offload_timeout_ms), place.slab, place.slot, slot.write});
    decision.grants.push_back({static_cast<std::uint32_t>(decision.decided), place.slab, in_slab, slot.write});
  }
  counters_[domain].refused += decision.full;
  // These blocks are used once more: a worker has computed or imported them again.
  pool_.Use(group, present, false, now_);
  if (!decision.grants.empty()) places_.AllocateAhead(group, writer, now_);
  pool_.DropIfEmpty(group);
  return decision;
}

bool HostCache::Done(ClientId client, Domain& domain, const kvmwire::CompleteStore& done, int& next, const WorkBudget& budget) {
  SlabWriter* const writer = writers_.Find(client);
  if (writer == nullptr || writer->clearing) return true;
  std::unordered_map<SlabClass*, std::vector<policy::Slot>> stored;
  for (const int from = next; next < done.outcomes_size() && (next == from || !budget.used_up()); ++next) {
    Spend(1);
    const kvmwire::StoreOutcome& outcome = done.outcomes(next);
    Slab* slab = pool_.Find(domain, outcome.region(), outcome.region_epoch());
    if (slab == nullptr || !slab->WritableBy(*writer) || outcome.slot() >= slab->group.blocks.slots_per_slab()) continue;
    SlotTable& blocks = slab->group.blocks;
    const policy::Slot at = blocks.SlotAt(slab->position, outcome.slot());
    CacheSlot& slot = blocks[at];
    const bool granted = slot.state == CacheSlot::State::kGranted;
    if ((!granted && slot.state != CacheSlot::State::kExpired) || slot.write != outcome.generation()) continue;
    if (granted) --writer->granted;
    // A block that was stored too late is still good, but another client may have been granted a
    // slot for the same block meanwhile.
    if (granted && outcome.stored() && slab->Publish(outcome.slot(), slot.write, slot.record, slot.checksum)) {
      KVM_FAULT_POINT(kvmd_store_published);
      blocks.Commit(at);
      stored[&slab->group].push_back(at);
      ++counters_[domain].stored;
    } else {
      slab->FreeSlot(outcome.slot());
    }
  }
  for (const auto& [group, slots] : stored) pool_.Use(*group, slots, false, now_);
  pool_.NoteProgress();
  return next >= done.outcomes_size();
}

// Each run is a request of its own: two of one prefix are two uses. But a message that names one
// end twice tells of one moment, so the chain is told once.
bool HostCache::Used(Domain& domain, const kvmwire::HostCacheUse& use, Using& progress, const WorkBudget& budget) {
  int& next = progress.next;
  for (const int from = next; next < use.runs_size() && (next == from || !budget.used_up()); ++next) {
    Spend(1);
    const kvmwire::HostCacheRun& run = use.runs(next);
    Slab* slab = pool_.Find(domain, run.region(), run.region_epoch());
    if (slab == nullptr || run.slot() >= slab->group.blocks.slots_per_slab()) continue;
    const policy::Slot at = slab->group.blocks.SlotAt(slab->position, run.slot());
    const CacheSlot& slot = slab->group.blocks[at];
    if (slot.state != CacheSlot::State::kStored) continue;
    counters_[domain].hits += std::min(run.blocks(), slot.record.depth + 1);
    const bool first = progress.told.emplace(run.region(), run.region_epoch(), run.slot()).second;
    if (first) pool_.Use(slab->group, std::span(&at, 1), true, now_);
  }
  return next >= use.runs_size();
}

void HostCache::EvictSlot(Slab& slab, policy::Slot slot, Evicting& progress) {
  const CacheSlot& at = slab.group.blocks[slot];
  // What an earlier kvmd has left in an unknown slot comes within a moment.
  if (at.state == CacheSlot::State::kGranted || at.state == CacheSlot::State::kUnknown) ++progress.being_stored;
  if (at.state != CacheSlot::State::kStored) return;
  if (at.pins > 0) {
    ++progress.leased;
    return;
  }
  Spend(kEvictUnits);
  pool_.Evict(slab, slot);
  ++progress.blocks;
  progress.bytes += slab.group.kind.block_bytes;
}

bool HostCache::EvictKeys(const Filter& filter, std::span<const BlockKey> keys, Evicting& progress, const WorkBudget& budget) {
  std::set<SlabClass*> groups;  // a key is of one model and shard, but clients name the keys
  Spend(pool_.slabs().size());
  for (const auto& slab : pool_.slabs()) {
    if (filter.Matches(slab->group)) groups.insert(&slab->group);
  }
  for (const std::size_t from = progress.key; progress.key < keys.size() && (progress.key == from || !budget.used_up()); ++progress.key) {
    Spend(1 + groups.size());
    for (SlabClass* group : groups) {
      const std::optional<policy::Slot> slot = group->blocks.Find(keys[progress.key]);
      if (!slot) continue;
      Spend(pool_.slabs().size() / 8);
      EvictSlot(pool_.Holding(*group, *slot), *slot, progress);
    }
  }
  return progress.key == keys.size();
}

bool HostCache::EvictSlabs(const Filter& filter, Evicting& progress, const WorkBudget& budget) {
  if (!progress.listed) {
    Spend(pool_.slabs().size());
    for (const auto& slab : pool_.slabs()) {
      if (filter.Matches(slab->group)) progress.slabs.emplace_back(slab->region->row, slab->region->info.region_epoch);
    }
    progress.listed = true;
  }
  for (; !progress.slabs.empty(); progress.slabs.pop_back(), progress.slot = 0) {
    const auto [row, region_epoch] = progress.slabs.back();
    Slab* const slab = pool_.Find(filter.domain, row, region_epoch);
    if (slab == nullptr) continue;
    for (SlotTable& blocks = slab->group.blocks; progress.slot < blocks.slots_per_slab(); ++progress.slot) {
      if (budget.used_up()) return false;
      Spend(1);
      EvictSlot(*slab, blocks.SlotAt(slab->position, progress.slot), progress);
    }
  }
  return true;
}

bool HostCache::Evict(const Filter& filter, std::span<const BlockKey> keys, Evicting& progress, const WorkBudget& budget) {
  const bool done = keys.empty() ? EvictSlabs(filter, progress, budget) : EvictKeys(filter, keys, progress, budget);
  pool_.NoteProgress();
  return done;
}

bool HostCache::GiveUpAll(const Domain& domain, const WorkBudget& budget) {
  allocator_.Forget(domain);
  return pool_.GiveUpAll(domain, budget);
}

void HostCache::Forget(const Domain& domain) {
  pool_.Forget(domain);
  if (auto seen = seen_.extract(&domain)) {
    auto keys = std::make_shared<SeenKeys>(std::move(seen.mapped()));
    const std::size_t bytes = keys->bytes();
    freer_.Destroy(std::move(keys), bytes);
  }
  counters_.Forget(domain);
}

void HostCache::Tick(SteadyTime now) {
  now_ = now;
  writers_.Tick(now);
  pool_.Tick();
}

std::vector<Slab*> HostCache::SlabsOf(ClientId client) const {
  std::vector<Slab*> slabs;
  const SlabWriter* const writer = writers_.Find(client);
  for (const auto& slab : pool_.slabs()) {
    if (writer != nullptr && slab->WritableBy(*writer)) slabs.push_back(slab.get());
  }
  return slabs;
}

std::uint64_t HostCache::BytesOf(ClientId client) const {
  const SlabWriter* const writer = writers_.Find(client);
  return writer == nullptr ? 0 : writer->bytes;
}

}  // namespace kvm::daemon
