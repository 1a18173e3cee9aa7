// Who administers what: root, kvmd's own user and --admins all domains, the admins of a domain's
// section that domain. Called by the services that change something for an operator.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "daemon/registry/domain.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

inline bool AdministersAll(const Config& config, std::uint32_t uid) {
  return uid == 0 || uid == ::geteuid() || std::find(config.admins.begin(), config.admins.end(), uid) != config.admins.end();
}

inline bool Administers(const Config& config, const Domain& domain, std::uint32_t uid) {
  const auto& admins = domain.config().admins;
  return AdministersAll(config, uid) || std::find(admins.begin(), admins.end(), uid) != admins.end();
}

}  // namespace kvm::daemon
