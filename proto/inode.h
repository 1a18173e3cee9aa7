// What names an open file whatever its descriptors are: of a memfd, for as long as anybody has it.
#pragma once

#include <sys/stat.h>

#include <cstdint>

namespace kvm {

// 0: no such descriptor. Files of a kind may share one (pidfds of old kernels).
inline std::uint64_t InodeOf(int fd) noexcept {
  struct stat info {};
  return ::fstat(fd, &info) == 0 ? static_cast<std::uint64_t>(info.st_ino) : 0;
}

}  // namespace kvm
