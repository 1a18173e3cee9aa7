#include "daemon/system/huge_page_maker.h"

#include <sys/mman.h>

#include <cstddef>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace kvm::daemon {

// A mapping of its own, since the kernel uses a huge page only where address and file offset are
// aligned alike. It is read-only, as a sealed segment allows no other. Other mappings of the file
// get the huge page with their next access.
std::uint64_t MoveToHugePages(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept {
  const std::uint64_t whole = bytes / kHugePageBytes * kHugePageBytes;
  if (whole == 0) return 0;
  const std::uint64_t reserved = whole + kHugePageBytes;
  void* const base = ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return 0;
  const std::uint64_t head = (kHugePageBytes - reinterpret_cast<std::uintptr_t>(base) % kHugePageBytes) % kHugePageBytes;
  void* const at = ::mmap(static_cast<std::byte*>(base) + head, whole, PROT_READ, MAP_SHARED | MAP_FIXED, fd, static_cast<off_t>(offset));
  const bool moved = at != MAP_FAILED && ::madvise(at, whole, MADV_COLLAPSE) == 0;
  ::munmap(base, reserved);
  return moved ? whole : 0;
}

void HugePagesNow::Make(int fd, std::uint64_t offset, std::uint64_t bytes, Done done) { done(MoveToHugePages(fd, offset, bytes)); }

}  // namespace kvm::daemon
