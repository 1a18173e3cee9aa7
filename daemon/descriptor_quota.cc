#include "daemon/descriptor_quota.h"

#include <sys/resource.h>

#include <algorithm>

namespace kvm::daemon {
namespace {

constexpr std::uint64_t kOwn = 64;      // kvmd's own: sockets, timers, registries
constexpr std::uint64_t kOfClient = 2;  // socket and pidfd
constexpr std::uint64_t kLeast = 64;    // some workers, however small the limit is

}  // namespace

std::uint64_t MaxFdsPerDomain(const Config& config, std::uint64_t process_limit) noexcept {
  if (config.max_fds_per_domain != 0) return config.max_fds_per_domain;
  // A limit that is small against --max-clients: half of it is for connections all the same.
  const std::uint64_t others = std::min(process_limit / 2, kOfClient * config.max_clients + kOwn);
  return std::max(kLeast, (process_limit - others) / 2);
}

std::uint64_t MaxFdsPerDomain(const Config& config) noexcept {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return kLeast;
  return MaxFdsPerDomain(config, limit.rlim_cur);
}

}  // namespace kvm::daemon
