// The memory limits of the control groups that this process is in: cgroup v1 and v2, from its own
// group up to the outermost one that it can see.
//
// /proc/self/cgroup names the group, and /proc/self/mountinfo says where groups are mounted and at
// which group the mount begins (a container often sees its own group as the root). A limit that
// exists and can't be read is an error: no caller may assume that there is enough.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kvm/error.h"

namespace kvm {

inline constexpr std::uint64_t kNoMemoryLimit = std::numeric_limits<std::uint64_t>::max();

// One limit on a process's memory: the machine's, or that of a control group.
struct MemoryLevel {
  // For people: "this machine", "control group /sys/fs/cgroup/x"
  std::string name;
  std::uint64_t limit_bytes = kNoMemoryLimit;  // what it allows, in total
  // The part not in use, or in use by caches that the kernel can drop
  std::uint64_t available_bytes = 0;
};

// The groups that have a limit, innermost first; an empty list if no group limits this process.
// `root`: "", or a directory that stands for / (tests). kSystem, kUnsupported: the limit can't be
// determined; the message says why.
[[nodiscard]] Result<std::vector<MemoryLevel>> ReadControlGroups(const std::string& root = {});

}  // namespace kvm
