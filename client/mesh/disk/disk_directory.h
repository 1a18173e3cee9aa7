// DiskDirectory: the directory of a disk cache, locked for this process while the object lives.
// Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm::mesh {

class DiskDirectory {
 public:
  // Makes the directory with mode 0700 if it is missing; its parent must exist. kPermissionDenied:
  // a symlink, another user's, or others may write to it. kAlreadyExists: another process has it,
  // and the message names the lock. kSystem.
  [[nodiscard]] static Result<DiskDirectory> Open(const std::string& path);

  int fd() const noexcept { return directory_.get(); }
  // Numbers of the segments that there are, by their files' names, in order. kSystem.
  [[nodiscard]] Result<std::vector<std::uint64_t>> Segments() const;
  void Remove(std::uint64_t segment) const noexcept;

 private:
  DiskDirectory(UniqueFd directory, UniqueFd lock) noexcept : directory_(std::move(directory)), lock_(std::move(lock)) {}

  UniqueFd directory_, lock_;
};

}  // namespace kvm::mesh
