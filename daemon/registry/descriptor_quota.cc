#include "daemon/registry/descriptor_quota.h"

#include <sys/resource.h>

#include <algorithm>
#include <string>

namespace kvm::daemon {
namespace {

constexpr std::uint64_t kOwn = 64;      // kvmd's own: sockets, timers, registries
constexpr std::uint64_t kOfClient = 2;  // socket and pidfd
constexpr std::uint64_t kLeast = 64;    // enough for some workers, however small the limit is

std::uint64_t ProcessLimit() noexcept {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 0;
}

std::uint64_t MaxOf(const Config& config, bool stored, std::uint64_t process_limit) noexcept {
  // If the limit is small compared with --max-clients, connections get half of it at most.
  const std::uint64_t others = std::min(process_limit / 2, kOfClient * config.max_clients + kOwn);
  return std::max(kLeast, (process_limit - others) / (stored ? 2 : 1));
}

}  // namespace

DescriptorQuota::DescriptorQuota(const Config& config, bool stored) : DescriptorQuota(config, stored, ProcessLimit()) {}

DescriptorQuota::DescriptorQuota(const Config& config, bool stored, std::uint64_t process_limit)
    : max_(MaxOf(config, stored, process_limit)),
      max_of_domain_(config.max_fds_per_domain != 0 ? config.max_fds_per_domain : std::max(kLeast, max_ / 2)) {}

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
