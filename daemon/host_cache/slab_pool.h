// SlabPool: the open slabs of the host cache, by class, and the memory of closed slabs that
// importers may still have mapped.
//
// Called by the other parts of the cache: HostCache, SlabWriters, SlabAllocator, PlaceFinder and
// HostCacheRestore. It owns slabs and classes, closes slabs, and evicts blocks from them.
//
// Invariants:
//   - A class lives while one of its slabs does. A slab's blocks leave the index before the slab is
//     closed.
//   - A block is in the index only while its slot's generation is the even one it was published
//     with.
//   - Memory of a closed slab counts until its region has left the domain, since importers have it
//     mapped until then. Then it is emptied, so that no descriptor that a client has kept, or sent
//     on, holds memory of the cache.
// Single-threaded.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "daemon/host_cache/host_cache_counters.h"
#include "daemon/host_cache/host_cache_events.h"
#include "daemon/host_cache/slab.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

struct HostCacheUsage {
  std::uint64_t bytes = 0, used_bytes = 0, blocks = 0, huge_bytes = 0, transparent_bytes = 0;
  std::uint32_t slabs = 0;

  void Add(const Slab& slab) noexcept;
};

class SlabPool final : public SlabObserver {
 public:
  // All outlive the pool.
  SlabPool(const Config& config, HostCacheEvents& host, HostCacheCounters& counters, MemoryFreer& freer);
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;
  ~SlabPool() override;  // leaves the slabs' regions to the domains, or to the next kvmd

  // The class for blocks of this region; made if there is none yet.
  SlabClass& ClassOf(Domain& domain, const Region& source);
  // Destroys the class if it has no slab.
  void DropIfEmpty(SlabClass& group);

  const std::vector<std::unique_ptr<Slab>>& slabs() const noexcept { return slabs_; }
  // Null if there is no such slab any more
  Slab* Find(Domain& domain, std::uint32_t row, std::uint32_t region_epoch) const;
  // The slab that has the slot. Precondition: there is one.
  Slab& Holding(const SlabClass& group, policy::Slot slot) const;
  // Whether a slab of the class still waits for entries of an older registry (HostCacheRestore).
  bool Restoring(const SlabClass& group) const;

  Slab& Add(std::unique_ptr<Slab> slab);
  // Closes the slab and drops its blocks. The class stays, even if it is empty now.
  void Close(Slab& slab);
  // Does the same, and destroys the class if it is empty now.
  void GiveUp(Slab& slab);
  // Drops slabs of the region's user, model and shard whose blocks have another size than the
  // region's: one slice of them at once, the others in Work.
  void DropMismatched(Domain& domain, const Region& region);
  // Drops all slabs of the domain, until the budget is used up. True: none is left.
  bool GiveUpAll(const Domain& domain, const WorkBudget& budget);
  // Empties the memory of a slab that never was in the pool.
  void Empty(Slab& slab);
  // Called before the domain is destroyed, of which no slab is left.
  void Forget(const Domain& domain);
  // Begins to empty closed slabs whose regions have left, and destroys empty classes.
  void Tick();
  // Closes unwanted slabs and empties closed ones, until the budget is used up; true if there is
  // more to do.
  bool Work(const WorkBudget& budget);
  bool closing() const noexcept { return !closing_.empty(); }

  // Takes a stored block out of its slot and out of the index.
  void Evict(Slab& slab, policy::Slot slot);
  // Tells the policy of blocks that one request used, in prefix order (SlotTable::Use).
  void Use(SlabClass& group, std::span<const policy::Slot> slots, bool imported, SteadyTime now);
  void OnEntryErased(Slab& slab, std::uint32_t slot) noexcept override;

  std::uint64_t BytesOf(std::uint32_t uid) const;  // of slabs of the user's, closing ones included
  // Adds the slabs of the domain; null: of all domains.
  void Count(const Domain* domain, HostCacheUsage& usage) const;
  std::uint64_t slab_bytes() const noexcept { return slab_bytes_; }

  // Notes that waiting offers can be tried again.
  void NoteProgress() noexcept { progress_ = true; }
  // Whether NoteProgress has been called since the last call of this function.
  bool TakeProgress() noexcept { return std::exchange(progress_, false); }

  // A slab is closed in one step, which takes about 3 ms for so many slots.
  static constexpr std::uint32_t kMaxSlotsPerSlab = 1 << 13;

 private:
  // A closed slab whose memory importers may still have mapped, or that is being emptied.
  struct Closing {
    Domain* domain;  // null: it is gone
    std::uint32_t row, region_epoch;
    std::uint64_t bytes;
    std::uint32_t uid;
    SlabMemory memory;
    bool emptying = false;
  };

  bool CloseUnwanted(const WorkBudget& budget);
  void DropEmptyClasses();

  const Config& config_;
  HostCacheEvents& host_;
  HostCacheCounters& counters_;
  MemoryFreer& freer_;
  const std::uint64_t slab_bytes_;
  std::map<SlabClass::Kind, std::unique_ptr<SlabClass>> classes_;
  std::vector<std::unique_ptr<Slab>> slabs_;
  std::vector<Closing> closing_;
  bool progress_ = false;
};

}  // namespace kvm::daemon
