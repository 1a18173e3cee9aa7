#include "daemon/registry/descriptor_quota.h"

#include <sys/resource.h>

#include <algorithm>
#include <string>

namespace kvm::daemon {
namespace {

constexpr std::uint64_t kOwn = 64;      // kvmd's own: sockets, timers, registries
constexpr std::uint64_t kOfClient = 2;  // socket and pidfd
constexpr std::uint64_t kMostWaiting = 16'384;
constexpr std::uint64_t kLeast = 64;  // some workers, however small the limit is

std::uint64_t ProcessLimit() noexcept {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 0;
}

std::uint64_t WaitingOf(const Config& config, std::uint64_t process_limit) noexcept {
  if (config.max_waiting_fds_per_user != 0) return config.max_waiting_fds_per_user;
  return std::clamp<std::uint64_t>(process_limit / 8, kLeast, kMostWaiting);
}

std::uint64_t MaxOf(const Config& config, bool stored, std::uint64_t process_limit) noexcept {
  // A limit that is small against --max-clients: half of it is for connections all the same.
  const std::uint64_t waiting = WaitingOf(config, process_limit);
  const std::uint64_t others = std::min(process_limit / 2, kOfClient * config.max_clients + kOwn + waiting);
  return std::max(kLeast, (process_limit - others) / (stored ? 2 : 1));
}

}  // namespace

std::uint64_t WaitingDescriptorsPerUser(const Config& config) noexcept { return WaitingOf(config, ProcessLimit()); }

// A manifest for each region, and registries, are stored as well.
DescriptorQuota::DescriptorQuota(const Config& config, bool stored, std::optional<std::uint64_t> store_size)
    : DescriptorQuota(config, std::max(kLeast, std::min(MaxOf(config, stored, ProcessLimit()),
                                                        stored && store_size ? *store_size / 4 * 3 : ~std::uint64_t{0}))) {}

DescriptorQuota::DescriptorQuota(const Config& config, bool stored, std::uint64_t process_limit)
    : DescriptorQuota(config, MaxOf(config, stored, process_limit)) {}

DescriptorQuota::DescriptorQuota(const Config& config, std::uint64_t max)
    : max_(max), max_of_domain_(config.max_fds_per_domain != 0 ? config.max_fds_per_domain : std::max(kLeast, max_ / 2)) {}

Status DescriptorQuota::Check(std::uint64_t of_domain, std::uint64_t more) const {
  const auto exhausted = [](const std::string& whose, std::uint64_t limit, const char* by) {
    return MakeError(Errc::kResourceExhausted,
                     "too many descriptors of " + whose + ": the limit is " + std::to_string(limit) + " (" + by + ")");
  };
  if (of_domain + more > max_of_domain_) return exhausted("one domain", max_of_domain_, "--max-fds-per-domain");
  if (kept_ + more > max_) return exhausted("all domains together", max_, "by kvmd's RLIMIT_NOFILE, LimitNOFILE= of its unit");
  return {};
}

}  // namespace kvm::daemon
