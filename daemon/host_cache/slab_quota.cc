#include "daemon/host_cache/slab_quota.h"

#include <algorithm>

#include "daemon/host_cache/host_cache_size.h"

namespace kvm::daemon {

HostCacheUsage SlabQuota::Usage(const Domain* domain) const {
  HostCacheUsage usage;
  pool_.Count(domain, usage);
  allocator_.Count(domain, usage);
  return usage;
}

bool SlabQuota::ClientMayHave(const SlabWriter& writer, std::uint64_t bytes) const noexcept {
  return config_.max_host_cache_per_client == 0 || writer.bytes + bytes <= config_.max_host_cache_per_client;
}

SlabQuota::Limit SlabQuota::LimitFor(const SlabClass& group, const SlabWriter& writer) const {
  const std::uint64_t bytes = group.slab_bytes();
  if (!ClientMayHave(writer, bytes)) return Limit::kClient;
  const HostCacheUsage domain = Usage(&group.domain);
  if (config_.max_host_cache_per_domain != 0 && domain.bytes + bytes > config_.max_host_cache_per_domain) return Limit::kDomain;
  // Workers need rows of the region table, too.
  if (domain.slabs >= std::max(1u, config_.max_regions / 2)) return Limit::kDomain;
  if (Usage(nullptr).bytes + bytes > config_.host_cache_bytes) return Limit::kFull;
  return Limit::kNone;
}

Status SlabQuota::CheckRestored(const SlabClass& group, std::uint64_t bytes) const {
  if (Usage(nullptr).bytes + bytes > config_.host_cache_bytes)
    return MakeError(Errc::kResourceExhausted, "the host cache is smaller than it was (--host-cache)");
  const std::uint64_t of_domain = Usage(&group.domain).bytes;
  if (config_.max_host_cache_per_domain != 0 && of_domain + bytes > config_.max_host_cache_per_domain)
    return MakeError(Errc::kResourceExhausted, "the domain's limit is smaller than it was (--max-host-cache-per-domain)");
  return {};
}

std::string SlabQuota::Reason(Limit limit) const {
  switch (limit) {
    case Limit::kNone: break;
    case Limit::kClient:
      return "this client's limit of host cache is " + Mib(config_.max_host_cache_per_client) + " (--max-host-cache-per-client)";
    case Limit::kDomain:
      if (config_.max_host_cache_per_domain == 0) return "the host cache has half of the region table (--max-regions)";
      return "this domain's limit of host cache is " + Mib(config_.max_host_cache_per_domain) + " (--max-host-cache-per-domain)";
    case Limit::kFull: return "other clients have all of the host cache: " + Mib(config_.host_cache_bytes) + " (--host-cache)";
    case Limit::kMachine: return "no memory is left for the host cache (log: host_cache_not_grown)";
  }
  return "";
}

}  // namespace kvm::daemon
