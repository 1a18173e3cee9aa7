#include "daemon/host_cache/host_cache_size.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "daemon/registry/registry_segment.h"
#include "proto/base/memory_room.h"

namespace kvm::daemon {

std::string Mib(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

std::uint64_t HostCacheSlabBytes(const Config& config) noexcept {
  constexpr std::uint64_t kLeast = std::uint64_t{64} << 20, kMost = std::uint64_t{1} << 30, kSlabs = 64, kFewestSlabs = 16;
  if (config.host_cache_slab_bytes != 0) return std::min(config.host_cache_slab_bytes, config.host_cache_bytes);
  return std::min(std::clamp(config.host_cache_bytes / kSlabs, kLeast, kMost), config.host_cache_bytes / kFewestSlabs);
}

Status CheckHostCache(const Config& config, bool restored) {
  // This part of the memory is left to everything but the cache and the registries
  constexpr std::uint64_t kOthersPart = 16;
  if (config.host_cache_bytes == 0) return {};
  const Result<MemoryRoom> room = MemoryRoom::Read();
  if (!room) return MakeError(room.error().code, "--host-cache: " + room.error().message);
  // The limit counts, not the free memory: memory in use now may be this cache, since a restarted
  // kvmd takes over the memory of the previous one.
  const MemoryLevel& level = room->smallest();
  const std::uint64_t domains = MostDomains(config), registries = restored ? 2 * domains : domains;
  const std::uint64_t registry = LargestRegistryBytes(config);
  const std::uint64_t most = level.limit_bytes - level.limit_bytes / kOthersPart;
  if (config.host_cache_bytes > most || registry > (most - config.host_cache_bytes) / registries) {
    return MakeError(Errc::kInvalidArgument, "--host-cache: " + Mib(config.host_cache_bytes) + " are asked for, beside " +
                                                 std::to_string(registries) + " registries of " + Mib(registry) +
                                                 " (--max-domains, --max-entries" +
                                                 (restored ? "; each twice while kvmd is started anew); " : "); ") + level.name +
                                                 " allows " + Mib(level.limit_bytes) + ", of which " + Mib(most) + " are for both");
  }
  const std::uint64_t slab = HostCacheSlabBytes(config);
  std::vector<std::pair<std::uint64_t, std::string>> limits{{config.max_host_cache_per_domain, "--max-host-cache-per-domain"},
                                                            {config.max_host_cache_per_user, "--max-host-cache-per-user"},
                                                            {config.max_host_cache_per_client, "--max-host-cache-per-client"}};
  for (const DomainRule& rule : config.domains)
    limits.emplace_back(rule.max_host_cache.value_or(0), "[domain." + rule.name + "] max-host-cache");
  for (const auto& [bytes, option] : limits) {
    if (bytes != 0 && bytes < slab) {
      return MakeError(Errc::kInvalidArgument, option + ": " + std::to_string(bytes) + " bytes are less than a slab of the host cache, " +
                                                   std::to_string(slab) + " bytes (--host-cache-slab)");
    }
  }
  return {};
}

}  // namespace kvm::daemon
