#include "client/mesh/membership/static_membership.h"

#include "client/mesh/log/event_log.h"

namespace kvm::mesh {

void StaticMembership::Start(Changed changed) {
  changed_ = std::move(changed);
  changed_(members_);
}

void StaticMembership::Reload() {
  if (!read_) return;
  Result<std::vector<Member>> read = read_();
  if (!read) {
    LogEvent(LogLevel::kError, "peers_not_reloaded", {{"reason", read.error().ToString()}});
    return;
  }
  if (*read == members_) return;
  members_ = std::move(*read);
  LogEvent(LogLevel::kInfo, "peers_reloaded", {{"peers", members_.size()}});
  changed_(members_);
}

Awaitable<void> StaticMembership::Leave(Time) { co_return; }

}  // namespace kvm::mesh
