// SlabQuota: how much memory the host cache has, and how much more it may have: in all, for each
// domain, for each user and for each client.
//
// Called by PlaceFinder before a slab is made or gets another writer, by HostCacheRestore, and by
// HostCache for what operators see. It owns nothing; it counts the slabs of SlabPool and
// SlabAllocator. Single-threaded.
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
  // The limit that keeps a writer from having one more slab.
  enum class Limit { kNone, kClient, kUser, kDomain, kFull, kHeld, kMachine };

  // All outlive the quota.
  SlabQuota(const Config& config, const HostCacheEvents& host, const SlabPool& pool, const SlabAllocator& allocator)
      : config_(config), host_(host), pool_(pool), allocator_(allocator) {}

  HostCacheUsage Usage(const Domain* domain) const;  // null: of all domains
  std::uint64_t BytesOf(std::uint32_t uid) const { return pool_.BytesOf(uid) + allocator_.BytesOf(uid); }

  // Never kMachine, which shows only when memory for a slab can't be allocated.
  Limit LimitFor(const SlabClass& group, const SlabWriter& writer) const;
  // Whether the client's own limit allows so many more bytes.
  bool ClientMayHave(const SlabWriter& writer, std::uint64_t bytes) const noexcept;
  // Checks the limits for a slab of an earlier kvmd. kResourceExhausted, the option named.
  [[nodiscard]] Status CheckRestored(const SlabClass& group, std::uint64_t bytes) const;

  // The reason that a refused worker is told, with the option that sets the limit. Empty for kNone.
  std::string Reason(Limit limit, const SlabClass& group, std::uint32_t uid) const;

 private:
  const Config& config_;
  const HostCacheEvents& host_;
  const SlabPool& pool_;
  const SlabAllocator& allocator_;
};

}  // namespace kvm::daemon
