#include "daemon/registry/entry_table.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>

#include "daemon/registry/quota_error.h"
#include "daemon/system/log.h"
#include "proto/base/fault_point.h"

namespace kvm::daemon {
namespace {

// How many records ahead memory is prefetched, far enough to hide a miss to DRAM.
constexpr std::size_t kFetchFirst = 24;  // counters and slots by block, slots by key
// The slot of the block's old entry, known once the first has come
constexpr std::size_t kFetchSecond = 12;
constexpr std::uint64_t kSweepAhead = 16;
constexpr unsigned kSlowestSweep = 4;  // 1/16 of the rate

PublishRecord RecordAt(const std::string& records, std::size_t index) {
  PublishRecord record;
  std::memcpy(&record, records.data() + index * sizeof(record), sizeof(record));
  return record;
}

}  // namespace

EntryTable::EntryTable(const Config& config, RegistrySegment& segment, RegionTable& regions, Accounts& accounts)
    : config_(config),
      segment_(segment),
      regions_(regions),
      accounts_(accounts),
      index_(segment.slots(), segment.tags(), segment.header().index_slots, config.max_entries, &segment.header().index_moves,
             [this](const IndexEntry& entry, std::uint64_t slot) { regions_.At(entry.region).slots.Set(entry.block, slot); }) {}

bool EntryTable::IsStale(const IndexEntry& entry) const noexcept {
  const Region& region = regions_.At(entry.region);
  return !region.serving() || region.generations.Current(entry.block) != entry.generation;
}

void EntryTable::Erase(std::uint64_t slot, std::atomic<std::uint64_t>& counter) noexcept {
  const IndexEntry entry = index_.At(slot);
  Region& region = regions_.At(entry.region);
  region.slots.Set(entry.block, SlotMap::kNone);
  --region.entries;
  region.account->RemoveEntry();
  index_.Erase(slot);
  KVM_FAULT_POINT(kvmd_entry_erased);
  Add(counter);
  if (region.filler != nullptr) region.filler->EntryErased(entry.block);
}

void EntryTable::WriteCount() noexcept { segment_.header().live_entries.store(index_.entries(), std::memory_order_relaxed); }

bool EntryTable::Publish(ClientId client, const kvmwire::Publish& publish, Publishing& progress, const WorkBudget& budget) {
  kvmwire::PublishAck& ack = progress.ack;
  ack.set_sequence(publish.sequence());
  const std::string& records = publish.records();
  const std::size_t count = records.size() / sizeof(PublishRecord);
  Region* region = regions_.Find(publish.region(), publish.region_epoch());
  if (region == nullptr || region->owner != client || !region->live()) {
    ack.set_refused_invalid(ack.refused_invalid() + static_cast<std::uint32_t>(count - progress.next));
    progress.next = count;
    return true;
  }
  const std::uint32_t blocks = region->info.block_count;
  const auto fetch_first = [&](std::size_t i) {
    const PublishRecord record = RecordAt(records, i);
    index_.Prefetch(record.key);
    if (record.block >= blocks) return;
    region->generations.Prefetch(record.block);
    region->slots.Prefetch(record.block);
  };
  const auto fetch_second = [&](std::size_t i) {
    const PublishRecord record = RecordAt(records, i);
    if (record.block < blocks) index_.PrefetchSlot(region->slots.Get(record.block));
  };
  const std::size_t from = progress.next;
  for (std::size_t i = from; i < std::min(from + kFetchFirst, count); ++i) fetch_first(i);
  for (std::size_t i = from; i < std::min(from + kFetchSecond, count); ++i) fetch_second(i);
  const std::uint32_t now_s = SecondsSinceStart();
  std::uint32_t outcomes[5] = {};
  std::size_t& i = progress.next;
  for (; i < count && (i == from || !budget.used_up()); ++i) {
    if (i + kFetchFirst < count) fetch_first(i + kFetchFirst);
    if (i + kFetchSecond < count) fetch_second(i + kFetchSecond);
    ++outcomes[static_cast<int>(PublishOne(*region, RecordAt(records, i), now_s))];
  }
  const auto of = [&](Outcome outcome) { return outcomes[static_cast<int>(outcome)]; };
  ack.set_inserted(ack.inserted() + of(Outcome::kInserted));
  ack.set_refused_full(ack.refused_full() + of(Outcome::kFull));
  ack.set_refused_replicas(ack.refused_replicas() + of(Outcome::kReplicas));
  ack.set_refused_stale(ack.refused_stale() + of(Outcome::kStale));
  ack.set_refused_invalid(ack.refused_invalid() + of(Outcome::kInvalid));
  layout::Counters& counters = segment_.counters();
  Add(counters.published, of(Outcome::kInserted));
  Add(counters.refused_full, of(Outcome::kFull));
  Add(counters.refused_replicas, of(Outcome::kReplicas));
  Add(counters.refused_stale, of(Outcome::kStale));
  WriteCount();
  if (i < count) return false;
  KVM_FAULT_POINT(kvmd_batch_published);
  return true;
}

bool EntryTable::Restore(Region& region, const IndexEntry& entry) {
  const std::uint32_t now_s = SecondsSinceStart();
  const bool in = PublishOne(region, {entry.key, entry.parent_lo, entry.generation, entry.block, entry.depth}, now_s) == Outcome::kInserted;
  Add(segment_.counters().published, in);
  WriteCount();
  return in;
}

EntryTable::Outcome EntryTable::PublishOne(Region& region, const PublishRecord& record, std::uint32_t now_s) {
  Spend(1);
  if (record.block >= region.info.block_count || !IsReadable(record.generation)) return Outcome::kInvalid;
  if (region.generations.Current(record.block) != record.generation) return Outcome::kStale;
  IndexEntry entry;
  entry.key = record.key;
  entry.generation = record.generation;
  entry.parent_lo = record.parent_lo;
  entry.region = region.row;
  entry.region_epoch = region.info.region_epoch;
  entry.block = record.block;
  entry.depth = record.depth;
  entry.published_s = now_s;
  if (const std::uint32_t old = region.slots.Get(record.block); old != SlotMap::kNone) {
    if (index_.At(old).key == record.key) {
      index_.Update(old, entry);
      return Outcome::kInserted;
    }
    Erase(old, segment_.counters().replaced);
  }
  std::uint64_t slots[layout::kMaxReplicas];
  if (index_.Replicas(record.key, slots) >= config_.max_replicas && !MakeRoomForReplica(region, record.key)) return Outcome::kReplicas;
  if (accounts_.HasAllEntries(*region.account) && !MakeRoomOfUser(region)) return Outcome::kFull;
  if (index_.full() && !MakeRoom(region)) return Outcome::kFull;
  const std::uint64_t slot = index_.Insert(entry);
  if (slot == kNoSlot) return Outcome::kFull;
  KVM_FAULT_POINT(kvmd_entry_inserted);
  region.slots.Set(record.block, slot);
  ++region.entries;
  region.account->AddEntry();
  return Outcome::kInserted;
}

// A worker that has no replica of the key yet gets one at the price of a worker that has several,
// or at the price of a user who has more than the worker's user, who has none. So others' replicas,
// which may be wrong, never keep a worker's own block out. Of the replicas that may go, the one
// that was published longest ago goes.
bool EntryTable::MakeRoomForReplica(const Region& publisher, const BlockKey& key) {
  if (DropStaleReplica(key)) return true;
  std::uint64_t slots[layout::kMaxReplicas];
  const std::size_t replicas = index_.Replicas(key, slots);
  const auto region_of = [&](std::size_t i) -> const Region& { return regions_.At(index_.At(slots[i]).region); };
  const auto count = [&](auto&& same) {
    std::size_t of = 0;
    for (std::size_t i = 0; i < replicas; ++i) of += same(region_of(i));
    return of;
  };
  const auto of_worker = [&](const Region& its) { return count([&](const Region& other) { return other.account == its.account; }); };
  const auto of_user = [&](const Region& its) {
    return count([&](const Region& other) { return !other.account->own && other.info.owner_uid == its.info.owner_uid; });
  };
  Spend(replicas * replicas);
  if (of_worker(publisher) > 0) return false;
  const bool user_has_none = of_user(publisher) == 0;
  std::optional<std::size_t> victim;
  const auto key_of = [&](std::size_t i) {
    return std::tuple(of_user(region_of(i)), of_worker(region_of(i)), ~index_.At(slots[i]).published_s);
  };
  for (std::size_t i = 0; i < replicas; ++i) {
    const IndexEntry entry = index_.At(slots[i]);
    const Region& its = region_of(i);
    if (its.filler != nullptr || its.Pinned(entry.block) || (!user_has_none && of_worker(its) < 2)) continue;
    if (!victim || key_of(i) > key_of(*victim)) victim = i;
  }
  if (!victim) return false;
  Erase(slots[*victim], segment_.counters().replaced);
  return true;
}

// The user has as many entries as it may: one of its own makes room, of its region with the most.
// The index is not searched, where it may have few among many. Of some blocks from anywhere on, a
// rewritten one goes, or else the deepest.
bool EntryTable::MakeRoomOfUser(const Region& publisher) {
  constexpr std::uint32_t kMostBlocks = 4096, kCandidates = 16;
  const UserAccount* user = publisher.account->user;
  const Region* richest = nullptr;
  for (const auto& region : regions_.rows()) {
    if (region && region->account->user == user && (richest == nullptr || region->entries > richest->entries)) richest = region.get();
  }
  Spend(regions_.rows().size() / 16);
  std::uint32_t victim = SlotMap::kNone, candidates = 0;
  const std::uint32_t blocks = richest == nullptr ? 0 : richest->info.block_count;
  std::uint32_t block = blocks == 0 ? 0 : static_cast<std::uint32_t>(MonotonicNs() % blocks);
  for (std::uint32_t left = std::min(blocks, kMostBlocks); left > 0 && candidates < kCandidates; --left) {
    Spend(1);
    const std::uint32_t slot = richest->slots.Get(block);
    const bool pinned = slot != SlotMap::kNone && richest->Pinned(block);
    block = block + 1 == blocks ? 0 : block + 1;
    if (slot == SlotMap::kNone || pinned) continue;
    ++candidates;
    if (victim == SlotMap::kNone || index_.At(slot).depth > index_.At(victim).depth) victim = slot;
    if (!IsStale(index_.At(slot))) continue;
    victim = slot;
    break;
  }
  if (victim == SlotMap::kNone) {
    LogLimited(LogLevel::kWarn, "entries_refused",
               {{"uid", publisher.account->uid},
                {"region", publisher.descriptor.name()},
                {"reason", Exhausted("too many entries of user " + std::to_string(publisher.account->uid), config_.max_entries_per_user,
                                     "--max-entries-per-user")
                               .message}});
    return false;
  }
  Erase(victim, segment_.counters().evicted);
  return true;
}

bool EntryTable::DropStaleReplica(const BlockKey& key) {
  std::uint64_t slots[layout::kMaxReplicas];
  const std::size_t replicas = index_.Replicas(key, slots);
  for (std::size_t i = 0; i < replicas; ++i) {
    if (!IsStale(index_.At(slots[i]))) continue;
    Erase(slots[i], segment_.counters().swept);
    return true;
  }
  return false;
}

// Drops, among the replicas of live workers, the one that was published longest ago.
void EntryTable::DropReplica(const BlockKey& key) {
  std::uint64_t slots[layout::kMaxReplicas];
  const std::size_t replicas = index_.Replicas(key, slots);
  for (std::size_t i = 0; i < replicas; ++i) {
    const IndexEntry entry = index_.At(slots[i]);
    if (regions_.At(entry.region).filler != nullptr || regions_.At(entry.region).Pinned(entry.block)) continue;
    return Erase(slots[i], segment_.counters().replaced);
  }
}

bool EntryTable::PublishCached(Region& region, const PublishRecord& record) {
  std::uint64_t slots[layout::kMaxReplicas];
  if (index_.Replicas(record.key, slots) >= config_.max_replicas && !DropStaleReplica(record.key)) DropReplica(record.key);
  const std::uint32_t now_s = SecondsSinceStart();
  const bool inserted = PublishOne(region, record, now_s) == Outcome::kInserted;
  Add(inserted ? segment_.counters().published : segment_.counters().refused_full);
  WriteCount();
  return inserted;
}

void EntryTable::EraseCached(Region& region, std::uint32_t block) {
  const std::uint32_t slot = region.slots.Get(block);
  if (slot != SlotMap::kNone) Erase(slot, segment_.counters().evicted);
  WriteCount();
}

bool EntryTable::MakeRoom(const Region& publisher) {
  const bool publisher_is_rich = publisher.account->entries >= accounts_.ShareOf(*publisher.account, config_.max_entries);
  const Standing best = regions_.orphans() > 0 ? Standing::kGone : Standing::kPreferred;
  const std::uint64_t victim = eviction_.ChooseVictim(index_, best, [&](const IndexEntry& entry) {
    if (IsStale(entry)) return Standing::kStale;
    const Region& region = regions_.At(entry.region);
    if (region.Pinned(entry.block)) return Standing::kProtected;
    // Those who work come before those who may come back.
    if (region.orphan) return Standing::kGone;
    const Account* account = region.account;
    if (account == publisher.account) return publisher_is_rich ? Standing::kPreferred : Standing::kLastResort;
    if (account->entries <= accounts_.ShareOf(*account, config_.max_entries)) return Standing::kProtected;
    return publisher_is_rich ? Standing::kAcceptable : Standing::kPreferred;
  });
  if (victim == kNoSlot) return false;
  layout::Counters& counters = segment_.counters();
  Erase(victim, IsStale(index_.At(victim)) ? counters.swept : counters.evicted);
  return true;
}

bool EntryTable::Retract(ClientId client, const kvmwire::Retract& retract, int& next, const WorkBudget& budget) {
  Region* region = regions_.Find(retract.region(), retract.region_epoch());
  if (region == nullptr || region->owner != client) return true;
  for (const int from = next; next < retract.blocks_size() && (next == from || !budget.used_up()); ++next) {
    Spend(1);
    const std::uint32_t block = retract.blocks(next);
    if (block >= region->info.block_count) continue;
    const std::uint32_t slot = region->slots.Get(block);
    if (slot != SlotMap::kNone && IsStale(index_.At(slot))) Erase(slot, segment_.counters().retracted);
  }
  WriteCount();
  return next >= retract.blocks_size();
}

void EntryTable::Sweep(std::uint32_t slots) {
  if (index_.entries() == 0) return;
  const std::uint64_t count = index_.slots();
  const std::uint64_t budget = std::min<std::uint64_t>(std::max(slots >> sweep_idle_, 1u), count);
  // What erasing costs beside the looks is up to who chose the keys.
  const WorkBudget work(budget + kSliceUnits);
  for (std::uint64_t looked = 0; looked < budget && !work.used_up(); ++looked) {
    Spend(1);
    const std::uint64_t ahead = sweep_hand_ + kSweepAhead < count ? sweep_hand_ + kSweepAhead : 0;
    if (const IndexEntry next = index_.At(ahead); next.region_epoch != 0) regions_.At(next.region).generations.Prefetch(next.block);
    const IndexEntry entry = index_.At(sweep_hand_);
    if (entry.region_epoch != 0 && IsStale(entry)) {
      // A later entry may have moved into the slot: look at it again.
      Erase(sweep_hand_, segment_.counters().swept);
      ++swept_in_round_;
      sweep_idle_ = 0;
      continue;
    }
    if (++sweep_hand_ < count) continue;
    sweep_hand_ = 0;
    // A stale entry costs a reader one look at a generation and nothing else, so an index with few
    // stale entries is swept slowly.
    if (swept_in_round_ * 64 < index_.entries()) sweep_idle_ = std::min(sweep_idle_ + 1, kSlowestSweep);
    swept_in_round_ = 0;
  }
  WriteCount();
}

bool EntryTable::Reap(Region& region, std::uint32_t& blocks, const WorkBudget& budget) noexcept {
  for (; region.entries > 0; ++region.reap_from, --blocks) {
    if (blocks == 0 || budget.used_up()) return false;
    Spend(1);
    const std::uint32_t slot = region.slots.Get(region.reap_from);
    if (slot != SlotMap::kNone) Erase(slot, segment_.counters().reaped);
  }
  return true;
}

IndexEntry EntryTable::Of(const Region& region, std::uint32_t block) const noexcept {
  const std::uint32_t slot = region.slots.Get(block);
  return slot == SlotMap::kNone ? IndexEntry{} : index_.At(slot);
}

Result<EntryTable::RecordList> EntryTable::BeginRecords(const Region& region) {
  Result<OwnedMemory> memory = OwnedMemory::Create("kvmd:records", std::max<std::uint64_t>(region.entries, 1) * sizeof(PublishRecord));
  if (!memory) return memory.error();
  return RecordList{std::move(*memory), 0, 0};
}

bool EntryTable::GoOnRecords(const Region& region, RecordList& list, const WorkBudget& budget) const {
  constexpr std::uint32_t kAhead = 16;
  const std::uint32_t blocks = region.info.block_count;
  const std::uint64_t room = list.memory.size() / sizeof(PublishRecord);
  for (std::uint32_t& block = list.next; block < blocks && list.count < room; ++block) {
    if (budget.used_up()) return false;
    Spend(1);
    if (block + kAhead < blocks) {
      region.generations.Prefetch(block + kAhead);
      index_.PrefetchSlot(region.slots.Get(block + kAhead));
    }
    const std::uint32_t slot = region.slots.Get(block);
    if (slot == SlotMap::kNone) continue;
    const IndexEntry entry = index_.At(slot);
    if (region.generations.Current(block) != entry.generation) continue;
    Spend(1);
    const PublishRecord record{entry.key, entry.parent_lo, entry.generation, block, entry.depth};
    std::memcpy(list.memory.data() + list.count * sizeof(record), &record, sizeof(record));
    ++list.count;
  }
  return true;
}

}  // namespace kvm::daemon
