#include "daemon/host_cache/huge_pages.h"

#include <string>

#include "proto/base/text_files.h"

namespace kvm::daemon {
namespace {

std::uint64_t NumberIn(const std::string& path) {
  const Result<std::string> text = ReadTextFile(path);
  return text ? ParseNumber(*text).value_or(0) : 0;
}

}  // namespace

std::uint64_t FreeReservedHugeBytes() noexcept {
  const std::string pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  const std::uint64_t free = NumberIn(pool + "free_hugepages"), promised = NumberIn(pool + "resv_hugepages");
  return free > promised ? (free - promised) * kHugePageBytes : 0;
}

}  // namespace kvm::daemon
