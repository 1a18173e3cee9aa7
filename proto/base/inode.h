// What names an open file whatever its descriptors are: of a memfd, for as long as anybody has it.
#pragma once

#include <sys/stat.h>

#include <compare>
#include <cstdint>

namespace kvm {

// One file among those of all file systems: memfds of ordinary and of huge pages are counted separately. Files of a kind may
// share one (pidfds of old kernels).
struct FileId {
  std::uint64_t device = 0, inode = 0;
  friend auto operator<=>(const FileId&, const FileId&) = default;  // NOLINT(modernize-use-nullptr): the comparison that the compiler makes
};

// Zeros: no such descriptor.
inline FileId FileIdOf(int fd) noexcept {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return {};
  return {static_cast<std::uint64_t>(info.st_dev), static_cast<std::uint64_t>(info.st_ino)};
}

}  // namespace kvm
