// PlaceFinder: chooses the slot for an offered block: the slab, the slot, and the block or slab
// that makes room.
//
// Called by HostCache for each block of an offer. It owns nothing: it chooses among the slabs of
// SlabPool, asks SlabAllocator for new ones, and asks SlabQuota whether they are allowed.
//
// A writer that has no free slot gets, in this order: a slab whose writer's process has ended; new
// memory, if the cache's size, the quotas and the machine allow it; the memory of another writer's
// slab that has not been used for long, or that exceeds that writer's share; the slot of a block of
// its own, which the policy chooses.
//
// Invariants:
//   - A slab is writable by one living process at most, and never by processes of two users.
//   - A block that a lease covers is not evicted.
// Single-threaded.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "daemon/host_cache/slab_allocator.h"
#include "daemon/host_cache/slab_pool.h"
#include "daemon/host_cache/slab_quota.h"
#include "daemon/host_cache/slab_writers.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

// A slot that has been found, or why there is none.
struct Placement {
  enum class Outcome {
    kFound,
    kWait,  // memory is being allocated or freed: try again when there is progress
    kFull,  // no room for this block
    // No room for any block of the offer, since leases cover the blocks that could make room
    kLeased,
  };

  static Placement At(Slab& slab, policy::Slot slot) { return {Outcome::kFound, &slab, slot, {}}; }
  static Placement None(Outcome outcome, std::string reason = {}) { return {outcome, nullptr, 0, std::move(reason)}; }

  Outcome outcome = Outcome::kFull;
  Slab* slab = nullptr;   // of kFound
  policy::Slot slot = 0;  // of kFound: the slot's number in the class; it is granted already
  std::string reason;     // of the others, for the client
};

class PlaceFinder {
 public:
  // All outlive the finder.
  PlaceFinder(const Config& config, HostCacheEvents& host, SlabPool& pool, const SlabWriters& writers, SlabAllocator& allocator,
              const SlabQuota& quota)
      : config_(config), host_(host), pool_(pool), writers_(writers), allocator_(allocator), quota_(quota) {}

  // Finds a free slot, or evicts a block to make one, and grants it for `record`.
  Placement Find(SlabClass& group, const std::shared_ptr<SlabWriter>& writer, const PublishRecord& record, SteadyTime now);
  // Begins to allocate a slab if the writer's slabs are nearly full, so that the next offer need
  // not wait.
  void AllocateAhead(SlabClass& group, const std::shared_ptr<SlabWriter>& writer, SteadyTime now);

 private:
  Placement MakeRoom(SlabClass& group, const std::shared_ptr<SlabWriter>& writer, const PublishRecord& record, SlabQuota::Limit limit,
                     bool has_slab);
  std::optional<policy::Slot> OwnVictim(SlabClass& group, const SlabWriter& writer, const PublishRecord& wanted) const;
  bool HoldsPinned(const SlabClass& group, const SlabWriter& writer) const;
  Slab* Abandoned(const SlabClass& group, const SlabWriter& writer, bool with_room) const;
  bool BeingCleared(const SlabClass& group, const SlabWriter& writer) const;
  // The slab that is to be dropped to make room; null if none may be. `leased`: leases keep the
  // slab that would have been the first choice.
  struct Candidate {
    Slab* slab = nullptr;
    bool leased = false;
  };
  Candidate ToGiveUp(const SlabClass& group, const SlabWriter& writer, std::optional<std::uint64_t> own_used_ms,
                     SlabQuota::Limit limit) const;
  void AssignWriter(Slab& slab, const std::shared_ptr<SlabWriter>& writer);

  const Config& config_;
  HostCacheEvents& host_;
  SlabPool& pool_;
  const SlabWriters& writers_;
  SlabAllocator& allocator_;
  const SlabQuota& quota_;
};

}  // namespace kvm::daemon
