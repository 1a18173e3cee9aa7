// Where the control group that limits this process's memory can be looked at.
//
// Both parts of the answer are relative to the root of this process's control group namespace. They
// may lie above it: a process that was put into a namespace and got no mounts of its own sees a
// group "/..", or a mount that begins there. The kernel does not tell the names in between, so this
// code searches for the group that lists this process.
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

// Empty if this process is in no group that could limit its memory. `root` has the meaning that it
// has for ReadControlGroups. kUnsupported, kSystem: the process is in a group whose files this
// function can't read.
[[nodiscard]] Result<std::optional<CgroupPath>> FindMemoryCgroup(const std::string& root);

}  // namespace kvm
