// SlotTable: the blocks of one model and shard in the host cache, the slot that holds each, and the
// choice of the block that leaves next.
//
// Slots are numbered over all slabs: slab position × slots of a slab + slot in the slab. The policy
// chooses among them. The caller knows which client may write a slab, and where its memory is.
//
// A slot goes free → granted → stored → free, or granted → expired → free. An expired slot's time
// to store the block has passed, but its writer may still be copying; so the slot stays unused
// until that writer has answered or its process has ended. In a slab that an earlier kvmd filled,
// slots go unknown → stored, free or expired.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "daemon/policy/linked_list.h"
#include "daemon/policy/policies.h"
#include "daemon/system/memory_freer.h"
#include "daemon/system/work_meter.h"
#include "proto/base/secret_hash.h"
#include "proto/wire/publish_record.h"

namespace kvm::daemon {

struct CacheSlot {
  enum class State : std::uint8_t { kFree, kGranted, kExpired, kStored, kUnknown };

  State state = State::kFree;
  bool listed = false;     // the policy knows of it, or has yet to be told of it again
  bool late = false;       // it is told at the end (SlotTable::Untold)
  std::uint32_t told = 0;  // which policy knows of it (SlotTable::policies_)
  std::uint32_t pins = 0;  // a pinned block is not evicted
  // Blocks that follow it in a prefix and that the policy does not know yet; while there are any,
  // it is not evicted
  std::uint32_t coming = 0;
  // Of the block that is stored or being stored; until it is stored, `generation` is that of the
  // source
  PublishRecord record;
  std::uint64_t checksum = 0;  // of the block's content, if the slab has checksums
  std::uint64_t write = 0;     // odd generation of the slot while it is granted
  std::uint64_t used_ms = 0;   // when it was last used, by the clock of Use
  bool may_leave = false;      // it is in its slab's list of those
  policy::Links leaving;       // in that list
};

class SlotTable {
 public:
  using Slot = policy::Slot;

  // About what a slot takes here and in a policy, beside the block's memory
  static constexpr std::uint64_t kBytesPerSlot = 512;

  // `most_slabs`: an upper bound of the number of slabs. The policy's capacity grows with the
  // slabs, by doubling: a larger one takes its place, and Work tells it of the blocks. `freer`,
  // which outlives the table, gets the one before.
  SlotTable(policy::PolicyKind kind, std::uint32_t slots_per_slab, std::uint32_t most_slabs, MemoryFreer& freer);

  std::uint32_t slots_per_slab() const noexcept { return slots_per_slab_; }
  std::uint32_t AddSlab();  // returns its position
  std::uint32_t AddUnknownSlab();
  // Removes the slab with all its blocks.
  void RemoveSlab(std::uint32_t position);

  Slot SlotAt(std::uint32_t position, std::uint32_t slot) const noexcept { return position * slots_per_slab_ + slot; }
  std::uint32_t PositionOf(Slot slot) const noexcept { return slot / slots_per_slab_; }
  std::uint32_t InSlab(Slot slot) const noexcept { return slot % slots_per_slab_; }
  CacheSlot& operator[](Slot slot) noexcept { return slots_[slot]; }

  // Tells a new policy of blocks that are stored, until the budget is used up; true if there are
  // more. Those that it does not know yet leave once no other may.
  bool Work(const WorkBudget& budget);

  // The slot that holds the block, or that is granted for it.
  std::optional<Slot> Find(const BlockKey& key) const;
  // Whether another block has the first half of its key, by which policies know blocks. It happens
  // to hardly any two keys that are hashes.
  bool HalfTaken(const BlockKey& key) const {
    const std::optional<Slot> found = by_key_.Find(key.lo);
    return found && slots_[*found].record.key != key;
  }
  std::uint32_t free_in(std::uint32_t position) const noexcept { return static_cast<std::uint32_t>(slabs_[position].free.size()); }

  // Free → granted. Empty if the slab has no free slot. Precondition: no slot is found for the key,
  // and its half is not taken.
  std::optional<Slot> Grant(std::uint32_t position, const PublishRecord& record);
  // Granted → expired.
  void Expire(Slot slot);
  // Pins the block, which ChooseVictim then does not choose. False if the slot holds no block. An
  // Unpin, or the end of the block, ends a pin.
  bool Pin(Slot slot) noexcept;
  void Unpin(Slot slot) noexcept;
  std::uint32_t pinned_in(std::uint32_t position) const noexcept { return slabs_[position].pinned; }
  std::uint32_t granted_in(std::uint32_t position) const noexcept { return slabs_[position].granted; }
  std::uint32_t expired_in(std::uint32_t position) const noexcept { return slabs_[position].expired; }
  // Granted → stored. The policy learns of the block with the next Use; until then the block is not
  // evicted.
  void Commit(Slot slot);
  // Unknown → stored; false if another slot has the block.
  bool Restore(Slot slot, const PublishRecord& record);
  // Unknown → expired.
  void GiveUp(Slot slot) noexcept { SetState(slot, CacheSlot::State::kExpired); }
  // Any state → free.
  void Free(Slot slot);

  // Tells the policy of blocks that one request used, in prefix order: those that have just been
  // stored, or imported. The stored blocks of their prefixes count as used as well, but at most
  // once a second unless they were `imported`.
  void Use(std::span<const Slot> slots, std::uint64_t now_ms, bool imported);

  // Among the stored, unpinned blocks of these slabs; not the parent of the block that the place is
  // for. That none may leave is known without a search, however many slots there are.
  std::optional<Slot> ChooseVictim(std::span<const std::uint32_t> positions, const PublishRecord& wanted);

  std::uint64_t stored() const noexcept { return stored_; }
  // About what the table and its policy take.
  std::size_t bytes() const noexcept { return kBytesPerSlot * slots_per_slab_ * capacity_; }

 private:
  struct Slab {
    bool present = false;
    std::vector<std::uint32_t> free;  // slots in the slab; the last element is granted next
    std::uint32_t pinned = 0;         // slots with pins
    std::uint32_t granted = 0, expired = 0;
    // Slots whose block may be evicted; the one used least recently is at the back
    policy::ListEnds may_leave;
  };

  void Grow();
  void Tell(Slot slot);
  // When it was last used, and its place among those that one request used.
  using LastUse = std::pair<std::uint64_t, std::uint32_t>;
  LastUse UseOf(Slot slot) const noexcept;
  void SortSlab(std::uint32_t position);
  bool ComesLater(std::uint32_t a, std::uint32_t b) const noexcept;
  void SetState(Slot slot, CacheSlot::State state) noexcept;
  void UsePath(std::vector<Slot>& path, std::uint64_t now_ms, bool imported);
  void IsComing(const PublishRecord& record) noexcept;
  void HasCome(Slot slot);
  void NoteWhetherItMayLeave(Slot slot) noexcept;
  void LetLeave(Slot slot) noexcept;
  void KeepFromLeaving(Slot slot) noexcept;
  auto Leaving() noexcept {
    return [this](Slot slot) -> policy::Links& { return slots_[slot].leaving; };
  }
  std::optional<Slot> OldestThatMayLeave(std::span<const std::uint32_t> positions, Slot but) const noexcept;
  policy::Block BlockIn(Slot slot) const;

  const policy::PolicyKind kind_;
  const std::uint32_t slots_per_slab_, most_slabs_;
  MemoryFreer& freer_;
  // The slots by BlockKey::lo, in many maps that grow one after the other, so that a small part is
  // moved at a time. Each look at a key is a step of work.
  class ByKey {
   public:
    ByKey() : maps_(kMaps, Map(0, hash_)) {
      for (std::size_t i = 0; i < maps_.size(); ++i) maps_[i].max_load_factor(1 + static_cast<float>(i) / static_cast<float>(maps_.size()));
    }

    std::optional<Slot> Find(std::uint64_t key) const {
      const Map& map = maps_[Place(key)];
      const auto found = map.find(key);
      return found == map.end() ? std::nullopt : std::optional(found->second);
    }
    // False: the key has a slot already.
    bool Add(std::uint64_t key, Slot slot) {
      Map& map = maps_[Place(key)];
      const std::size_t before = map.bucket_count();
      const bool added = map.emplace(key, slot).second;
      if (map.bucket_count() != before) Spend(4 * map.size());
      return added;
    }
    // Nothing happens if the key has another slot.
    void Remove(std::uint64_t key, Slot slot) {
      Map& map = maps_[Place(key)];
      if (const auto found = map.find(key); found != map.end() && found->second == slot) map.erase(found);
    }

   private:
    struct CountedEqual {
      bool operator()(std::uint64_t a, std::uint64_t b) const noexcept {
        Spend(1);
        return a == b;
      }
    };
    using Map = std::unordered_map<std::uint64_t, Slot, SecretHash, CountedEqual>;
    static constexpr std::size_t kMaps = 64;

    std::size_t Place(std::uint64_t key) const noexcept { return hash_(key) % kMaps; }

    SecretHash hash_;
    std::vector<Map> maps_;
  };
  // Of each slab by itself, so that no more than one is moved or made at a time.
  class Slots {
   public:
    explicit Slots(std::uint32_t per_slab) : per_slab_(per_slab) {}
    CacheSlot& operator[](Slot slot) noexcept { return slabs_[slot / per_slab_][slot % per_slab_]; }
    const CacheSlot& operator[](Slot slot) const noexcept { return slabs_[slot / per_slab_][slot % per_slab_]; }
    void AddSlab() { slabs_.emplace_back(per_slab_); }

   private:
    const std::uint32_t per_slab_;
    std::vector<std::vector<CacheSlot>> slabs_;
  };
  // What a new policy is to be told of: the slots of each slab, those that were used last first.
  struct Untold {
    std::uint32_t next_slab = 0;             // to be sorted
    std::vector<std::vector<Slot>> sorted;   // of the slabs before it
    std::vector<std::uint32_t> by_last_use;  // a heap of slabs, by the last of their slots
    std::deque<Slot> late;                   // used meanwhile, in order
  };

  Slots slots_;
  std::vector<Slab> slabs_;
  ByKey by_key_;
  std::unique_ptr<policy::EvictionPolicy> policy_;
  std::uint32_t policies_ = 0;  // so many have been made
  std::uint32_t capacity_ = 0;  // of the policy, in slabs
  std::optional<Untold> untold_;
  std::uint64_t stored_ = 0;
};

}  // namespace kvm::daemon
