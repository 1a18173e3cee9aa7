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
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "daemon/policy/linked_list.h"
#include "daemon/policy/policies.h"
#include "proto/wire/publish_record.h"

namespace kvm::daemon {

struct CacheSlot {
  enum class State : std::uint8_t { kFree, kGranted, kExpired, kStored, kUnknown };

  State state = State::kFree;
  bool listed = false;     // the policy knows of it
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

  // `most_slabs`: an upper bound of the number of slabs. The policy's capacity grows with the
  // slabs, by doubling.
  SlotTable(policy::PolicyKind kind, std::uint32_t slots_per_slab, std::uint32_t most_slabs);

  std::uint32_t slots_per_slab() const noexcept { return slots_per_slab_; }
  std::uint32_t AddSlab();  // returns its position
  std::uint32_t AddUnknownSlab();
  // Removes the slab with all its blocks.
  void RemoveSlab(std::uint32_t position);

  Slot SlotAt(std::uint32_t position, std::uint32_t slot) const noexcept { return position * slots_per_slab_ + slot; }
  std::uint32_t PositionOf(Slot slot) const noexcept { return slot / slots_per_slab_; }
  std::uint32_t InSlab(Slot slot) const noexcept { return slot % slots_per_slab_; }
  CacheSlot& operator[](Slot slot) noexcept { return slots_[slot]; }

  // The slot that holds the block, or that is granted for it.
  std::optional<Slot> Find(const BlockKey& key) const;
  std::uint32_t free_in(std::uint32_t position) const noexcept { return static_cast<std::uint32_t>(slabs_[position].free.size()); }

  // Free → granted. Empty if the slab has no free slot.
  std::optional<Slot> Grant(std::uint32_t position, const PublishRecord& record);
  // Granted → expired.
  void Expire(Slot slot);
  // Pins the block, which ChooseVictim then does not choose. False if the slot holds no block. An
  // Unpin, or the end of the block, ends a pin.
  bool Pin(Slot slot) noexcept;
  void Unpin(Slot slot) noexcept;
  std::uint32_t pinned_in(std::uint32_t position) const noexcept { return slabs_[position].pinned; }
  // Granted → stored. The policy learns of the block with the next Use; until then the block is not
  // evicted.
  void Commit(Slot slot);
  // Unknown → stored; false if another slot has the block.
  bool Restore(Slot slot, const PublishRecord& record);
  // Unknown → expired.
  void GiveUp(Slot slot) noexcept { slots_[slot].state = CacheSlot::State::kExpired; }
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

 private:
  struct Slab {
    bool present = false;
    std::vector<std::uint32_t> free;  // slots in the slab; the last element is granted next
    std::uint32_t pinned = 0;         // slots with pins
    // Slots whose block may be evicted; the one used least recently is at the back
    policy::ListEnds may_leave;
  };

  void Grow();
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
  std::vector<CacheSlot> slots_;
  std::vector<Slab> slabs_;
  std::unordered_map<std::uint64_t, Slot> by_key_;  // BlockKey::lo
  std::unique_ptr<policy::EvictionPolicy> policy_;
  std::uint64_t stored_ = 0;
};

}  // namespace kvm::daemon
