// A slab of the host cache: memory of kvmd's that one worker at a time may write, and the region by
// which everybody imports from it.
//
// Made by SlabAllocator or HostCacheRestore, kept by SlabPool, and pinned through its region
// (RegionFiller) for leases. It owns its memory and the mapping of its generation table; the region
// is the domain's.
//
// Invariant: what it holds outlives its writer. kvmd alone writes its generation table, so a writer
// can spoil what it stored itself and nothing else, and a block is readable only once kvmd has said
// so.
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

// Told when a block's entry left the index without the cache's doing.
class SlabObserver {
 public:
  virtual ~SlabObserver() = default;
  virtual void OnEntryErased(Slab& slab, std::uint32_t slot) noexcept = 0;
};

class Slab final : public RegionFiller {
 public:
  // Memory that is not allocated yet, for `slots` blocks.
  [[nodiscard]] static Result<std::unique_ptr<Slab>> Create(SlabObserver& observer, std::string name, SlabClass& group,
                                                            std::uint64_t promised);

  // Once the memory is allocated: makes it a region of the domain. What Domain::PrepareRegion and
  // AddRegion say.
  [[nodiscard]] Status Open(std::uint32_t position);
  // A slab of an earlier kvmd's, whose region is a live one of the domain already; what its slots
  // hold is told by SlotTable::Restore. What OwnedMemory::Take and GenerationWriter::Open say.
  [[nodiscard]] static Result<std::unique_ptr<Slab>> Reopen(SlabObserver& observer, SlabClass& group, Region& region,
                                                            const kvmwire::StoredSlab& stored);
  // Leaves the region to the domain, or to the next kvmd, as it is.
  void Close() noexcept;
  // The same of a slab whose memory goes: what it held is unreadable before anything else happens
  // to it.
  void GiveUp() noexcept;

  void EntryErased(std::uint32_t block) noexcept override { observer_.OnEntryErased(*this, block); }
  bool Pin(std::uint32_t slot) noexcept override { return group.blocks.Pin(group.blocks.SlotAt(position, slot)); }
  void Unpin(std::uint32_t slot) noexcept override { group.blocks.Unpin(group.blocks.SlotAt(position, slot)); }
  bool Pinned(std::uint32_t slot) const noexcept override { return group.blocks[group.blocks.SlotAt(position, slot)].pins > 0; }

  bool TableLost() const noexcept override { return generation_memory_.lost(); }

  // Withdraws a slot from readers; the odd generation that a writer of it owns.
  Generation BeginWrite(std::uint32_t slot) noexcept { return generations_.BeginWrite(slot); }
  // Makes a slot readable and publishes `record`, which has the source's block; false: the index
  // has no room.
  [[nodiscard]] bool Publish(std::uint32_t slot, Generation write, PublishRecord record, std::uint64_t checksum);
  void Unpublish(std::uint32_t slot);
  // Puts a block that is readable already into the index; false: that has no room.
  [[nodiscard]] bool PublishAgain(const PublishRecord& record) { return group.domain.PublishCached(*region, record); }
  bool readable(std::uint32_t slot) const noexcept { return IsReadable(generations_.Current(slot)); }

  std::uint64_t bytes() const noexcept { return memory.size(); }
  bool WritableBy(const SlabWriter& other) const noexcept { return writer.get() == &other; }
  // Whether somebody else may be given it: nobody can write it any more.
  bool abandoned() const noexcept { return !writer || writer->gone; }

  SlabClass& group;
  SlabMemory memory;
  Region* region = nullptr;  // null: still being allocated
  std::uint32_t position = 0;
  std::uint32_t uid = 0;               // of its writers
  std::shared_ptr<SlabWriter> writer;  // null: nobody has been able to write it yet
  std::uint64_t used_ms = 0;
  bool restoring = false;  // entries of an older registry's are still to come

 private:
  Slab(SlabObserver& observer, std::string name, SlabClass& its_group) : group(its_group), observer_(observer), name_(std::move(name)) {}

  SlabObserver& observer_;
  const std::string name_;
  OwnedMemory generation_memory_;
  GenerationWriter generations_;
};

}  // namespace kvm::daemon
