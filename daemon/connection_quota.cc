#include "daemon/connection_quota.h"

#include <algorithm>
#include <string>

namespace kvm::daemon {
namespace {

// Enough for the workers of a node and for looking at them, where --max-clients is small.
constexpr std::uint32_t kLeastPerUser = 64;

Error Full(const std::string& of, std::uint32_t limit, const char* option) {
  return MakeError(Errc::kResourceExhausted, "too many clients" + of + ": the limit is " + std::to_string(limit) + " (" + option + ")");
}

}  // namespace

std::uint32_t ConnectionsPerUser(const Config& config) noexcept {
  return config.max_clients_per_user != 0 ? config.max_clients_per_user : std::max(config.max_clients / 4, kLeastPerUser);
}

ConnectionQuota::ConnectionQuota(const Config& config) : max_(config.max_clients), per_user_(ConnectionsPerUser(config)) {}

Status ConnectionQuota::Add(std::uint32_t uid) {
  if (total_ >= max_) return Full("", max_, "--max-clients");
  if (const auto user = of_user_.find(uid); user != of_user_.end() && user->second >= per_user_) {
    return Full(" of user " + std::to_string(uid), per_user_, "--max-clients-per-user");
  }
  ++of_user_[uid];
  ++total_;
  return {};
}

void ConnectionQuota::Remove(std::uint32_t uid) {
  const auto user = of_user_.find(uid);
  if (user == of_user_.end()) return;
  if (--user->second == 0) of_user_.erase(user);
  --total_;
}

}  // namespace kvm::daemon
