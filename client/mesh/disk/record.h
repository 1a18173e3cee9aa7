// The bytes of the disk cache's files.
//
//   segment = [segment header, 1 page] [record] [record] …
//   record  = [record header, 1 page] [block, padded with zeros to whole pages]
//
// Both headers have a mark, and a checksum (XXH3, 64 bits) of all the rest of their page; numbers
// are little endian. A record names the segment and the offset that it was written at, so that
// bytes that a file system brings back from another file are not taken for one. It has all that is
// needed to check a block by itself: key, shape, length and checksum of the bytes.
//
// These bytes are as foreign as those of a socket: nothing that is read here is trusted before it
// has been compared. A change that older programs would misread needs a higher kDiskVersion; they
// leave such segments alone.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "client/mesh/disk/aligned_buffer.h"
#include "client/mesh/memory/shape.h"
#include "kvm/block_key.h"
#include "kvm/error.h"

namespace kvm::mesh {

inline constexpr std::uint32_t kDiskVersion = 1;
inline constexpr std::size_t kMaxDiskDomain = 255;  // bytes of a domain's name

using Page = std::span<std::byte>;  // of kDiskPage bytes
using ConstPage = std::span<const std::byte>;

struct SegmentHeader {
  std::uint64_t segment = 0;
  std::string domain;  // of kvmd: blocks of one domain are not served in another one
};

struct RecordHeader {
  std::uint64_t segment = 0;  // where it was written
  std::uint64_t offset = 0;
  BlockKey key;
  std::uint64_t parent_lo = 0;  // BlockKey::lo of the block before it
  std::uint32_t depth = 0;      // blocks before it in its prefix
  BlockShape shape;
  std::uint64_t checksum = 0;  // of the block's bytes
};

// Of a whole record.
constexpr std::uint64_t RecordBytes(std::uint64_t block_bytes) noexcept { return kDiskPage + WholePages(block_bytes); }

// Precondition: the domain has at most kMaxDiskDomain bytes.
void Encode(const SegmentHeader& header, Page page) noexcept;
void Encode(const RecordHeader& header, Page page) noexcept;
// kProtocol: no header, or damaged. kVersionMismatch: another version wrote it.
[[nodiscard]] Result<SegmentHeader> DecodeSegmentHeader(ConstPage page);
// kProtocol: no record, a damaged header, or a block of no bytes or more than a payload may have.
[[nodiscard]] Result<RecordHeader> DecodeRecordHeader(ConstPage page);

}  // namespace kvm::mesh
