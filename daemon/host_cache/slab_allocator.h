// New memory for slabs: begun when somebody needs it, allocated in slices between kvmd's other
// work, opened once it is whole.
//
// Called by PlaceFinder, which decides that a slab is to be made, and by HostCache::Work for the
// slices. It owns slabs that are not open yet; SlabPool has them afterwards.
//
// Invariant: a slab is in the pool only with all of its memory allocated, so that a full machine is
// an error here and no SIGBUS in a process that writes it. After such an error nothing is begun for
// a while. Single-threaded.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string_view>

#include "daemon/host_cache/host_cache_events.h"
#include "daemon/host_cache/slab_pool.h"
#include "daemon/host_cache/slab_writer.h"

namespace kvm::daemon {

class SlabAllocator {
 public:
  // Both outlive the allocator.
  SlabAllocator(SlabPool& pool, HostCacheEvents& host) : pool_(pool), host_(host) {}

  // Begins a slab that the writer is to write. False: the machine has no memory for it, or had none
  // just now.
  bool Start(SlabClass& group, const std::shared_ptr<SlabWriter>& writer, SteadyTime now);
  // A slice of allocating; true if there is more.
  bool Work(SteadyTime now);
  // Whether a slab of the class is being made for the writer.
  bool Allocating(const SlabClass& group, const SlabWriter& writer) const;
  // The domain is about to go.
  void Forget(const Domain& domain);
  // A slab of an earlier kvmd has this name: no new one will.
  void Avoid(std::string_view name);

  // Adds what is being allocated for the domain; null: for all.
  void Count(const Domain* domain, HostCacheUsage& usage) const;

 private:
  std::uint64_t PromisedBytes() const;
  void Finish(std::unique_ptr<Slab> slab, SteadyTime now);
  void Drop(const Slab& slab);
  void Pause(const Error& error, SteadyTime now);

  SlabPool& pool_;
  HostCacheEvents& host_;
  std::deque<std::unique_ptr<Slab>> allocating_;
  std::uint64_t next_name_ = 0;
  SteadyTime no_memory_until_{};
};

}  // namespace kvm::daemon
