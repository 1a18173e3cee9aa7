#include "daemon/registry/descriptor_quota.h"

#include <sys/resource.h>

#include <algorithm>
#include <string>

#include "daemon/registry/quota_error.h"

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
    : max_(max),
      max_of_domain_(config.max_fds_per_domain != 0 ? config.max_fds_per_domain : std::max(kLeast, max_ / 2)),
      max_of_user_(config.max_fds_per_user) {}

Status DescriptorQuota::Check(std::uint64_t of_domain, std::uint64_t more, std::uint64_t max_of_domain) const {
  const auto exhausted = [](const std::string& whose, std::uint64_t limit, const char* by) {
    return MakeError(Errc::kResourceExhausted,
                     "too many descriptors of " + whose + ": the limit is " + std::to_string(limit) + " (" + by + ")");
  };
  if (of_domain + more > max_of_domain) return exhausted("one domain", max_of_domain, "--max-fds-per-domain");
  if (kept_ + more > max_) return exhausted("all domains together", max_, "by kvmd's RLIMIT_NOFILE, LimitNOFILE= of its unit");
  return {};
}

Status DescriptorQuota::CheckUser(std::uint32_t uid, std::uint64_t more, std::uint64_t max_of_domain, bool shared) const {
  const std::uint64_t limit = max_of_user_ != 0 ? max_of_user_ : max_of_domain - (shared ? max_of_domain / 4 : 0);
  const auto found = of_user_.find(uid);
  const std::uint64_t has = found == of_user_.end() ? 0 : found->second;
  if (has + more <= limit) return {};
  return Exhausted("too many descriptors of user " + std::to_string(uid), limit, "--max-fds-per-user");
}

void DescriptorQuota::Add(std::uint64_t descriptors, std::optional<std::uint32_t> uid) {
  kept_ += descriptors;
  if (uid && descriptors > 0) of_user_[*uid] += descriptors;
}

void DescriptorQuota::Remove(std::uint64_t descriptors, std::optional<std::uint32_t> uid) noexcept {
  kept_ -= descriptors;
  const auto user = uid ? of_user_.find(*uid) : of_user_.end();
  if (user == of_user_.end()) return;
  user->second -= descriptors;
  if (user->second == 0) of_user_.erase(user);
}

}  // namespace kvm::daemon
