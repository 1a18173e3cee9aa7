#include "daemon/server/user_loads.h"

#include "daemon/registry/descriptor_quota.h"

namespace kvm::daemon {

UserLoads::UserLoads(const Config& config) : max_bytes_(config.max_queue_bytes_per_user), max_fds_(WaitingDescriptorsPerUser(config)) {}

void UserLoads::Change(std::uint32_t uid, const Load& before, const Load& after) {
  Load& load = loads_[uid];
  load.bytes += after.bytes - before.bytes;
  load.fds += after.fds - before.fds;
  if (load.bytes == 0 && load.fds == 0) loads_.erase(uid);
}

Load UserLoads::Of(std::uint32_t uid) const {
  const auto found = loads_.find(uid);
  return found == loads_.end() ? Load{} : found->second;
}

std::string UserLoads::WhyTooManyBytes(std::uint32_t uid) const {
  return "too much waits for connections of user " + std::to_string(uid) + ": the limit is " + std::to_string(max_bytes_) +
         " bytes (--max-queue-bytes-per-user)";
}

}  // namespace kvm::daemon
