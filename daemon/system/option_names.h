// Names of options' values, as in the configuration and in `kvctl status`.
#pragma once

#include <string_view>

#include "daemon/system/config.h"

namespace kvm::daemon {

std::string_view AdmissionName(HostCacheAdmission admission) noexcept;

}  // namespace kvm::daemon
