// A slab of the host cache: memory of kvmd's that one worker at a time may write, and the region by which everybody
// imports from it.
//
// What it holds outlives its writer. kvmd alone writes its generation table, so a writer can spoil what it stored
// itself and nothing else, and a block is readable only once kvmd has said so.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "daemon/host_cache/slab_memory.h"
#include "daemon/host_cache/slot_table.h"
#include "daemon/registry/domain.h"
#include "proto/shm/generation_table.h"

namespace kvm::daemon {

class Slab;

// A slot that a writer has been granted. Answered for once the slot's state or generation says something else.
struct OpenGrant {
  std::chrono::steady_clock::time_point deadline;
  Slab* slab = nullptr;
  policy::Slot slot = 0;  // of the group
  Generation write = 0;
};

// A client that may write slabs. Lives on after the client has left, for as long as its process might write.
struct SlabWriter {
  ClientId client = 0;  // 0: it has left
  std::uint32_t uid = 0, pid = 0;
  std::uint64_t instance = 0;  // Hello::instance
  Domain* domain = nullptr;
  std::shared_ptr<WatchedProcess> process;  // once it has left
  bool gone = false;                        // the process has ended
  std::uint64_t bytes = 0;                  // of its slabs, while it is there
  std::uint32_t granted = 0;                // slots that it has been granted and not answered for
  std::deque<OpenGrant> open;               // by deadline; answered ones go when their turn comes
};

// Slabs of one kind of block: any of their slots can hold any of these blocks.
struct SlabClass {
  // Everything by which slabs must agree; names the group.
  struct Kind {
    const Domain* domain = nullptr;
    std::uint32_t model = 0;
    std::string shard;  // of the descriptor, packed
    std::uint64_t block_bytes = 0;
    bool checksums = false;
    friend auto operator<=>(const Kind&, const Kind&) = default;  // NOLINT(modernize-use-nullptr): the comparison that the compiler makes
  };

  SlabClass(Kind its_kind, Domain& its_domain, SlotTable its_blocks, std::string its_fingerprint, std::vector<std::uint32_t> its_shard)
      : kind(std::move(its_kind)),
        domain(its_domain),
        blocks(std::move(its_blocks)),
        fingerprint(std::move(its_fingerprint)),
        shard(std::move(its_shard)) {}

  const Kind kind;
  Domain& domain;
  SlotTable blocks;
  const std::string fingerprint;
  const std::vector<std::uint32_t> shard;
  std::uint32_t slabs = 0;  // being allocated ones included
};

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

  // Once the memory is allocated: makes it a region of the domain. What Domain::PrepareRegion and AddRegion say.
  [[nodiscard]] Status Open(std::uint32_t position);
  // A slab of an earlier kvmd's, whose region is a live one of the domain already; what its slots hold is told by
  // SlotTable::Restore. What OwnedMemory::Take and GenerationWriter::Open say.
  [[nodiscard]] static Result<std::unique_ptr<Slab>> Reopen(SlabObserver& observer, SlabClass& group, Region& region,
                                                            const kvmwire::StoredSlab& stored);
  // Leaves the region to the domain, or to the next kvmd, as it is.
  void Close() noexcept;
  // The same of a slab whose memory goes: what it held is unreadable before anything else happens to it.
  void GiveUp() noexcept;

  void EntryErased(std::uint32_t block) noexcept override { observer_.OnEntryErased(*this, block); }
  bool Pin(std::uint32_t slot) noexcept override { return group.blocks.Pin(group.blocks.SlotAt(position, slot)); }
  void Unpin(std::uint32_t slot) noexcept override { group.blocks.Unpin(group.blocks.SlotAt(position, slot)); }
  bool Pinned(std::uint32_t slot) const noexcept override { return group.blocks[group.blocks.SlotAt(position, slot)].pins > 0; }

  bool TableLost() const noexcept override { return generation_memory_.lost(); }

  // Withdraws a slot from readers; the odd generation that a writer of it owns.
  Generation BeginWrite(std::uint32_t slot) noexcept { return generations_.BeginWrite(slot); }
  // Makes a slot readable and publishes `record`, which has the source's block; false: the index has no room.
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

 private:
  Slab(SlabObserver& observer, std::string name, SlabClass& its_group) : group(its_group), observer_(observer), name_(std::move(name)) {}

  SlabObserver& observer_;
  const std::string name_;
  OwnedMemory generation_memory_;
  GenerationWriter generations_;
};

}  // namespace kvm::daemon
