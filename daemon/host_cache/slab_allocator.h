// SlabAllocator: makes new slabs. It begins a slab when a writer needs one, allocates the memory in
// slices between kvmd's other work, and opens the slab once all of it is allocated.
//
// Called by PlaceFinder, which decides that a slab is to be made, and by HostCache::Work for the
// slices. It owns slabs that are not open yet; SlabPool owns them afterwards.
//
// Invariant: a slab is in the pool only with all of its memory allocated, so that a machine without
// free memory is an error here and no SIGBUS in the process that writes the slab. After such an
// error, no slab is begun for a while. Single-threaded.
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
  // All outlive the allocator.
  SlabAllocator(SlabPool& pool, HostCacheEvents& host, HugePageMaker& huge_pages) : pool_(pool), host_(host), huge_pages_(huge_pages) {}

  // Begins a slab for the writer. False if the machine has no memory for it, or had none a short
  // time ago.
  bool Start(SlabClass& group, const std::shared_ptr<SlabWriter>& writer, SteadyTime now);
  // Allocates some memory; true if more is to be allocated now. It is to be called again whenever
  // the maker of huge pages has made some.
  bool Work(SteadyTime now);
  // Whether a slab of the class is being made for the writer.
  bool Allocating(const SlabClass& group, const SlabWriter& writer) const;
  // Drops the domain's slabs that are being made.
  void Forget(const Domain& domain);
  // Keeps new slabs from getting this name, which a slab of an earlier kvmd has.
  void Avoid(std::string_view name);

  // Adds the memory that is being allocated for the domain; null: for all domains.
  std::uint64_t BytesOf(std::uint32_t uid) const;  // of the user's
  void Count(const Domain* domain, HostCacheUsage& usage) const;

 private:
  std::uint64_t PromisedBytes() const;
  void Finish(std::unique_ptr<Slab> slab, SteadyTime now);
  void Drop(const Slab& slab);
  void Pause(const Error& error, SteadyTime now);

  SlabPool& pool_;
  HostCacheEvents& host_;
  HugePageMaker& huge_pages_;
  std::deque<std::unique_ptr<Slab>> allocating_;
  std::uint64_t next_name_ = 0;
  SteadyTime no_memory_until_{};
};

}  // namespace kvm::daemon
