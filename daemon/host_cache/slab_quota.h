// How much memory the host cache has and how much more it may have: the size of it all, of each
// domain's part and of each client's.
//
// Called by PlaceFinder before a slab is made or given to somebody, by HostCacheRestore, and by
// HostCache for what operators see. It owns nothing; it counts what SlabPool and SlabAllocator
// have. Single-threaded.
#pragma once

#include <cstdint>
#include <string>

#include "daemon/host_cache/slab_allocator.h"
#include "daemon/host_cache/slab_pool.h"
#include "daemon/host_cache/slab_writer.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

class SlabQuota {
 public:
  // Why a writer can't have one more slab.
  enum class Limit { kNone, kClient, kDomain, kFull, kMachine };

  // All outlive the quota.
  SlabQuota(const Config& config, const SlabPool& pool, const SlabAllocator& allocator)
      : config_(config), pool_(pool), allocator_(allocator) {}

  HostCacheUsage Usage(const Domain* domain) const;  // null: of all

  // Never kMachine, which is only known once a slab has been tried to make.
  Limit LimitFor(const SlabClass& group, const SlabWriter& writer) const;
  // Whether the client's own limit allows it so much more.
  bool ClientMayHave(const SlabWriter& writer, std::uint64_t bytes) const noexcept;
  // Of a slab that an earlier kvmd has left. kResourceExhausted, the option named.
  [[nodiscard]] Status CheckRestored(const SlabClass& group, std::uint64_t bytes) const;

  // Tells a refused worker why, and which option sets the limit. Empty for kNone.
  std::string Reason(Limit limit) const;

 private:
  const Config& config_;
  const SlabPool& pool_;
  const SlabAllocator& allocator_;
};

}  // namespace kvm::daemon
