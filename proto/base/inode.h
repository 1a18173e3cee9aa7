// FileId: names an open file, whichever descriptors refer to it. A memfd keeps its FileId for as
// long as any process has a descriptor or a mapping of it.
#pragma once

#include <sys/stat.h>

#include <compare>
#include <cstdint>

namespace kvm {

// The device is part of the name, since memfds of ordinary pages and those of huge pages are
// numbered separately. Not every kind of file has a name of its own: old kernels give all pidfds
// the same one.
struct FileId {
  std::uint64_t device = 0, inode = 0;
  friend auto operator<=>(const FileId&, const FileId&) = default;  // NOLINT(modernize-use-nullptr): the comparison that the compiler makes
};

// Returns zeros if there is no such descriptor.
inline FileId FileIdOf(int fd) noexcept {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return {};
  return {static_cast<std::uint64_t>(info.st_dev), static_cast<std::uint64_t>(info.st_ino)};
}

}  // namespace kvm
