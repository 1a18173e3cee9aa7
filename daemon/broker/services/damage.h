// The log event and the reason when a process has punched a hole in a region's memory.
#pragma once

#include "daemon/registry/region.h"
#include "daemon/system/log.h"

namespace kvm::daemon {

inline constexpr const char* kHoleInMemory = "there is a hole in its memory";

inline void LogDamaged(const Region& region) {
  LogLimited(LogLevel::kWarn, "region_damaged",
             {{"region", region.descriptor.name()},
              {"row", region.row},
              {"pid", region.info.owner_pid},
              {"uid", region.info.owner_uid},
              {"reason", kHoleInMemory}});
}

}  // namespace kvm::daemon
