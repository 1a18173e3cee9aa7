// The memory that the machine allows a process: all of it, or that of the NUMA nodes in the
// process's cpuset.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kvm/error.h"
#include "proto/base/control_groups.h"

namespace kvm {

struct InstalledMemory {
  std::uint64_t bytes = 0;       // installed
  std::uint64_t free_bytes = 0;  // free, without caches
};

// sysinfo(2). kSystem.
[[nodiscard]] Result<InstalledMemory> ReadInstalledMemory();

// `root` as for ReadControlGroups. What is available is MemAvailable of /proc/meminfo; where that
// is hidden (ProcSubset=pid), an estimate from the nodes' meminfo in /sys; without that either,
// `installed.free_bytes`.
[[nodiscard]] MemoryLevel ReadMachineMemory(const InstalledMemory& installed, const std::string& root = {});

}  // namespace kvm
