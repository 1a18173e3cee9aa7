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
  const std::uint64_t bytes = group.Cost(group.slab_bytes());
  if (!ClientMayHave(writer, bytes)) return Limit::kClient;
  const std::uint64_t of_user = BytesOf(writer.uid), held = host_.ClosedSlabBytesOf(writer.uid);
  if (config_.max_host_cache_per_user != 0 && of_user + held + bytes > config_.max_host_cache_per_user) return Limit::kUser;
  const HostCacheUsage domain = Usage(&group.domain);
  const std::uint64_t most_of_domain = group.domain.config().max_host_cache_per_domain;
  if (most_of_domain != 0 && domain.bytes + bytes > most_of_domain) return Limit::kDomain;
  // Workers need rows of the region table, too.
  if (domain.slabs >= std::max(1u, group.domain.config().max_regions / 2)) return Limit::kDomain;
  if (Usage(nullptr).bytes + bytes > config_.host_cache_bytes) return Limit::kFull;
  if (of_user + held + bytes > 2 * config_.host_cache_bytes) return Limit::kHeld;
  return Limit::kNone;
}

Status SlabQuota::CheckRestored(const SlabClass& group, std::uint64_t bytes) const {
  if (Usage(nullptr).bytes + bytes > config_.host_cache_bytes)
    return MakeError(Errc::kResourceExhausted, "the host cache is smaller than it was (--host-cache)");
  const std::uint64_t of_domain = Usage(&group.domain).bytes;
  const std::uint64_t most_of_domain = group.domain.config().max_host_cache_per_domain;
  if (most_of_domain != 0 && of_domain + bytes > most_of_domain)
    return MakeError(Errc::kResourceExhausted, "the domain's limit is smaller than it was (--max-host-cache-per-domain)");
  return {};
}

std::string SlabQuota::Reason(Limit limit, const SlabClass& group, std::uint32_t uid) const {
  const std::uint64_t of_domain = group.domain.config().max_host_cache_per_domain;
  const std::string user = "user " + std::to_string(uid);
  switch (limit) {
    case Limit::kNone: break;
    case Limit::kClient:
      return "this client's limit of host cache is " + Mib(config_.max_host_cache_per_client) + " (--max-host-cache-per-client)";
    case Limit::kUser:
      return user + ": the limit of host cache is " + Mib(config_.max_host_cache_per_user) + " (--max-host-cache-per-user)";
    case Limit::kHeld:
      return user + ": processes still have memory of closed slabs; with it, the limit is " + Mib(2 * config_.host_cache_bytes) +
             " (twice --host-cache)";
    case Limit::kDomain:
      if (of_domain == 0) return "the host cache has half of the region table (--max-regions)";
      return "this domain's limit of host cache is " + Mib(of_domain) + " (--max-host-cache-per-domain)";
    case Limit::kFull: return "other clients have all of the host cache: " + Mib(config_.host_cache_bytes) + " (--host-cache)";
    case Limit::kMachine: return "no memory is left for the host cache (log: host_cache_not_grown)";
  }
  return "";
}

}  // namespace kvm::daemon
