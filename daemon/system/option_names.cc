#include "daemon/system/option_names.h"

namespace kvm::daemon {

std::string_view AdmissionName(HostCacheAdmission admission) noexcept {
  switch (admission) {
    case HostCacheAdmission::kPublish: return "publish";
    case HostCacheAdmission::kSecondHit: return "second-hit";
    case HostCacheAdmission::kReuse: return "reuse";
  }
  return "?";
}

}  // namespace kvm::daemon
