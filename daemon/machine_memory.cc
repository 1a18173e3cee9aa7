#include "daemon/machine_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace kvm::daemon {
namespace {

constexpr std::uint64_t kUnknown = std::numeric_limits<std::uint64_t>::max();

// The number in a file that holds one ("max" is no number); `otherwise` if there is none.
std::uint64_t NumberIn(const std::string& path, std::uint64_t otherwise) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return file >> value ? value : otherwise;
}

std::uint64_t FromMeminfo(const std::string& field) {
  std::ifstream file("/proc/meminfo");
  std::string name;
  std::uint64_t kib = 0;
  for (std::string unit; file >> name >> kib; std::getline(file, unit)) {
    if (name == field + ":") return kib * 1024;
  }
  return kUnknown;
}

// The least limit on the way from this process's control group to the root (cgroup v2).
std::uint64_t ControlGroupLimit() {
  std::ifstream file("/proc/self/cgroup");
  std::string line;
  while (std::getline(file, line) && !line.starts_with("0::")) continue;
  if (!line.starts_with("0::/")) return kUnknown;
  std::uint64_t limit = kUnknown;
  for (std::string group = line.substr(3); group.size() > 1; group.resize(group.rfind('/'))) {
    limit = std::min(limit, NumberIn("/sys/fs/cgroup" + group + "/memory.max", kUnknown));
  }
  return limit;
}

}  // namespace

std::uint64_t UsableMemoryBytes() noexcept { return std::min(FromMeminfo("MemTotal"), ControlGroupLimit()); }

std::uint64_t AvailableMemoryBytes() noexcept { return FromMeminfo("MemAvailable"); }

std::uint64_t FreeReservedHugeBytes() noexcept {
  const std::string pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  const std::uint64_t free = NumberIn(pool + "free_hugepages", 0), promised = NumberIn(pool + "resv_hugepages", 0);
  return free > promised ? (free - promised) * kHugePageBytes : 0;
}

}  // namespace kvm::daemon
