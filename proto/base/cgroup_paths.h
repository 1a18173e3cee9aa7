// Where the control group that limits this process's memory can be looked at.
//
// Both sides of the answer are relative to the root of this process's control group namespace and may lie above it: a
// group of "/.." or a mount that begins there is what a process sees that was put into a namespace and not given mounts
// of its own. The kernel doesn't tell the names in between; they are found by looking for the process itself.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kvm/error.h"

namespace kvm {

enum class CgroupVersion { kV1 = 1, kV2 = 2 };

struct CgroupPath {
  CgroupVersion version = CgroupVersion::kV2;
  std::string mount;                // the outermost group that can be seen; without `root`
  std::vector<std::string> groups;  // below it, down to this process's own
};

// Empty: this process is in no group that could limit its memory. `root` as for ReadControlGroups. kUnsupported,
// kSystem: it is in one that can't be looked at.
[[nodiscard]] Result<std::optional<CgroupPath>> FindMemoryCgroup(const std::string& root);

}  // namespace kvm
