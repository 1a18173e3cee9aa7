// Slab: memory of the host cache that one worker at a time may write, and the region through which
// workers import from it.
//
// SlabAllocator or HostCacheRestore makes a slab, and SlabPool owns it. Leases pin its blocks
// through its region (RegionFiller). The slab owns its memory and the mapping of its generation
// table; the domain owns the region.
//
// Invariant: its blocks outlive its writer. Only kvmd writes its generation table, so a block is
// readable only once kvmd has made it so, and a writer can damage only what it has stored itself.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "daemon/host_cache/slab_class.h"
#include "daemon/host_cache/slab_memory.h"
#include "daemon/host_cache/slab_writer.h"
#include "daemon/registry/domain.h"
#include "proto/shm/generation_table.h"

namespace kvm::daemon {

class Slab;

// Called when a block's entry has left the index for a reason outside of the cache.
class SlabObserver {
 public:
  virtual ~SlabObserver() = default;
  virtual void OnEntryErased(Slab& slab, std::uint32_t slot) noexcept = 0;
};

class Slab final : public RegionFiller {
 public:
  // Creates memory for `slots` blocks, which is not allocated yet.
  [[nodiscard]] static Result<std::unique_ptr<Slab>> Create(SlabObserver& observer, std::string name, SlabClass& group,
                                                            std::uint64_t promised);

  // Called once the memory is allocated: makes it a region of the domain. Errors: those of
  // Domain::PrepareRegion and AddRegion.
  [[nodiscard]] Status Open(std::uint32_t position);
  // Reopens a slab of an earlier kvmd, whose region is live in the domain already;
  // SlotTable::Restore then adds its blocks. Errors: those of OwnedMemory::Take and
  // GenerationWriter::Open.
  [[nodiscard]] static Result<std::unique_ptr<Slab>> Reopen(SlabObserver& observer, SlabClass& group, Region& region,
                                                            const kvmwire::StoredSlab& stored);
  // Leaves the region, unchanged, to the domain or to the next kvmd.
  void Close() noexcept;
  // Does the same for a slab whose memory is freed: its blocks become unreadable before anything
  // else happens to them.
  void GiveUp() noexcept;

  void EntryErased(std::uint32_t block) noexcept override { observer_.OnEntryErased(*this, block); }
  bool Pin(std::uint32_t slot) noexcept override { return group.blocks.Pin(group.blocks.SlotAt(position, slot)); }
  void Unpin(std::uint32_t slot) noexcept override { group.blocks.Unpin(group.blocks.SlotAt(position, slot)); }
  bool Pinned(std::uint32_t slot) const noexcept override { return group.blocks[group.blocks.SlotAt(position, slot)].pins > 0; }

  bool TableLost() const noexcept override { return generation_memory_.lost(); }

  // Withdraws a slot from readers, and returns the odd generation under which its writer stores a
  // block.
  Generation BeginWrite(std::uint32_t slot) noexcept { return generations_.BeginWrite(slot); }
  // Makes a slot readable and publishes `record`, whose `block` is still that of the source; false
  // if the index has no room.
  [[nodiscard]] bool Publish(std::uint32_t slot, Generation write, PublishRecord record, std::uint64_t checksum);
  void Unpublish(std::uint32_t slot);
  // Puts a block that is readable already into the index; false if the index has no room.
  [[nodiscard]] bool PublishAgain(const PublishRecord& record) { return group.domain.PublishCached(*region, record); }
  // Frees a slot. In a domain with zero-on-free, its bytes are overwritten with zeros.
  // Preconditions: no reader takes the slot, and no process writes it.
  void FreeSlot(std::uint32_t slot) noexcept;
  // The second half of FreeSlot, for a slot that is free already.
  void ZeroSlot(std::uint32_t slot) noexcept;
  bool readable(std::uint32_t slot) const noexcept { return IsReadable(generations_.Current(slot)); }

  std::uint64_t bytes() const noexcept { return memory.size(); }
  // For limits
  std::uint64_t cost() const noexcept { return group.Cost(bytes()); }
  bool WritableBy(const SlabWriter& other) const noexcept { return writer.get() == &other; }
  // Whether another client may become its writer, since no process can write it any more.
  bool abandoned() const noexcept { return !writer || writer->gone(); }

  SlabClass& group;
  SlabMemory memory;
  Region* region = nullptr;  // null: still being allocated
  std::uint32_t position = 0;
  std::uint32_t uid = 0;               // of its writers
  std::shared_ptr<SlabWriter> writer;  // null: no process has been able to write it yet
  std::uint64_t used_ms = 0;
  // To be closed: its user has registered blocks of another size, or its domain is to go
  bool unwanted = false;
  bool restoring = false;  // entries of an older registry are still to come
  std::uint32_t hand = 0;  // the slot that SlabWriters looks at next

 private:
  Slab(SlabObserver& observer, std::string name, SlabClass& its_group) : group(its_group), observer_(observer), name_(std::move(name)) {}

  SlabObserver& observer_;
  const std::string name_;
  OwnedMemory generation_memory_;
  GenerationWriter generations_;
};

}  // namespace kvm::daemon
