#include "daemon/server/connection_quota.h"

#include <string>

#include "daemon/registry/quota_error.h"

namespace kvm::daemon {

ConnectionQuota::ConnectionQuota(const Config& config) : max_(config.max_clients), per_user_(ConnectionsPerUser(config)) {}

Status ConnectionQuota::Add(std::uint32_t uid) {
  if (total_ >= max_) return Exhausted("too many clients", max_, "--max-clients");
  if (const auto user = of_user_.find(uid); user != of_user_.end() && user->second >= per_user_) {
    return Exhausted("too many clients of user " + std::to_string(uid), per_user_, "--max-clients-per-user");
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
