// The blocks of one model and shard in the host cache: which slot holds which, and which one leaves next.
//
// Slots are numbered over all slabs: slab position × slots of a slab + slot in the slab. The policy chooses among
// them; who may write a slab, and where its memory is, is the caller's business.
//
// A slot goes free → granted → stored → free, or granted → expired → free: the time to store the block has passed, but
// its writer may still be copying, so the slot is nobody's until that writer has said so or is gone. Of a slab that an
// earlier kvmd filled, slots are unknown → stored, free or expired.
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
  bool listed = false;         // the policy knows of it
  std::uint32_t pins = 0;      // a pinned block is not evicted
  std::uint32_t coming = 0;    // blocks behind it in a prefix that the policy does not know yet: nor is it evicted then
  PublishRecord record;        // of the block that it holds or is given; generation: of the source until it is stored
  std::uint64_t checksum = 0;  // of the block's content, if the slab has checksums
  std::uint64_t write = 0;     // odd generation of the slot while it is granted
  std::uint64_t used_ms = 0;   // when it was last used, by the clock of Use
  bool may_leave = false;      // it is in its slab's list of those
  policy::Links leaving;       // in that list
};

class SlotTable {
 public:
  using Slot = policy::Slot;

  // `most_slabs`: there will never be more. The capacity that the policy knows follows the slabs there are, by doubling.
  SlotTable(policy::PolicyKind kind, std::uint32_t slots_per_slab, std::uint32_t most_slabs);

  std::uint32_t slots_per_slab() const noexcept { return slots_per_slab_; }
  std::uint32_t AddSlab();  // its position
  std::uint32_t AddUnknownSlab();
  // Forgets what is in it.
  void RemoveSlab(std::uint32_t position);

  Slot SlotAt(std::uint32_t position, std::uint32_t slot) const noexcept { return position * slots_per_slab_ + slot; }
  std::uint32_t PositionOf(Slot slot) const noexcept { return slot / slots_per_slab_; }
  std::uint32_t InSlab(Slot slot) const noexcept { return slot % slots_per_slab_; }
  CacheSlot& operator[](Slot slot) noexcept { return slots_[slot]; }

  // The slot that holds the block, or that it has been granted.
  std::optional<Slot> Find(const BlockKey& key) const;
  std::uint32_t free_in(std::uint32_t position) const noexcept { return static_cast<std::uint32_t>(slabs_[position].free.size()); }

  // Free → granted. Nothing if the slab has no free slot.
  std::optional<Slot> Grant(std::uint32_t position, const PublishRecord& record);
  // Granted → expired.
  void Expire(Slot slot);
  // A pinned block is not chosen. False: the slot holds none. Each is ended by an Unpin, or with the block.
  bool Pin(Slot slot) noexcept;
  void Unpin(Slot slot) noexcept;
  std::uint32_t pinned_in(std::uint32_t position) const noexcept { return slabs_[position].pinned; }
  // Granted → stored. Use tells the policy; until then the block is not evicted.
  void Commit(Slot slot);
  // Unknown → stored; false: another slot has the block.
  bool Restore(Slot slot, const PublishRecord& record);
  // Unknown → expired.
  void GiveUp(Slot slot) noexcept { slots_[slot].state = CacheSlot::State::kExpired; }
  // To free, from any state.
  void Free(Slot slot);

  // Blocks that one request used, in prefix order: what has been stored just now, or imported. Their prefixes as far as
  // they are stored count as used as well, but not more than once in a second unless they were `imported`.
  void Use(std::span<const Slot> slots, std::uint64_t now_ms, bool imported);

  // Among the stored, unpinned blocks of these slabs; not the parent of the block that the place is for. That none may
  // leave is known without a search, however many slots there are.
  std::optional<Slot> ChooseVictim(std::span<const std::uint32_t> positions, const PublishRecord& wanted);

  std::uint64_t stored() const noexcept { return stored_; }

 private:
  struct Slab {
    bool present = false;
    std::vector<std::uint32_t> free;  // slots in the slab; the next one is the last
    std::uint32_t pinned = 0;         // slots with pins
    policy::ListEnds may_leave;       // slots whose block may be evicted; the one used least recently is at the back
  };

  void Grow();
  void UsePath(std::vector<Slot>& path, std::uint64_t now_ms, bool imported);
  void HasCome(Slot slot);
  void NoteWhetherItMayLeave(Slot slot) noexcept;
  void LetLeave(Slot slot) noexcept;
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
