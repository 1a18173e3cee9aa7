// SegmentFile: one open file of the disk cache. Readers share it, so a segment that is removed
// while it is read ends with its last reader. Thread-safe, except Shorten.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "client/mesh/disk/record.h"
#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm::mesh {

class SegmentFile {
 public:
  // Makes the file with its header, mode 0600, and reserves `bytes` on the disk. With O_DIRECT
  // where the file system takes it. kAlreadyExists: something has that name. kSystem: with errno,
  // for a full disk (ENOSPC, EDQUOT, EFBIG) as for all else; no file is left then.
  [[nodiscard]] static Result<std::shared_ptr<SegmentFile>> Create(int directory, const SegmentHeader& header, std::uint64_t bytes);
  // kPermissionDenied: a symlink, no plain file, or another user's. kVersionMismatch, kProtocol:
  // its header. kSystem.
  [[nodiscard]] static Result<std::shared_ptr<SegmentFile>> Open(int directory, std::uint64_t segment);

  // "segment-0123456789abcdef"
  static std::string Name(std::uint64_t segment) { return NameText(segment).data(); }
  using NameBytes = std::array<char, 32>;
  static NameBytes NameText(std::uint64_t segment) noexcept;  // ends with a zero

  std::uint64_t segment() const noexcept { return header_.segment; }
  const std::string& domain() const noexcept { return header_.domain; }
  int fd() const noexcept { return file_.get(); }
  bool direct() const noexcept { return direct_; }
  // Of the file now. kSystem.
  [[nodiscard]] Result<std::uint64_t> size() const;
  // Cuts it off at `bytes`, which frees what was reserved behind. Errors are of no consequence.
  void Shorten(std::uint64_t bytes) const noexcept;

 private:
  SegmentFile(UniqueFd file, SegmentHeader header, bool direct) noexcept
      : file_(std::move(file)), header_(std::move(header)), direct_(direct) {}

  UniqueFd file_;
  const SegmentHeader header_;
  const bool direct_;
};

}  // namespace kvm::mesh
