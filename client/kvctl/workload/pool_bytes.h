// PoolBytes: fills the blocks of a pool with the bytes that belong to their keys, and compares
// them, in host or GPU memory.
//
// Host memory is written and read in place. GPU memory is copied through a buffer, with one copy
// for each stretch of blocks. The caller calls BeginWrite before and Publish afterwards. Not
// thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "client/kvctl/workload/block_pieces.h"
#include "kvclient/region.h"

namespace kvm::ctl {

class PoolBytes {
 public:
  enum class Access { kInPlace, kCopied };

  // `region` must outlive this object; its chunks have multiples of 8 bytes.
  explicit PoolBytes(Region& region) : PoolBytes(region, region.device() == kHostMemory ? Access::kInPlace : Access::kCopied) {}
  // kInPlace: for host memory only.
  PoolBytes(Region& region, Access access) : region_(region), access_(access) {}

  // Fills blocks[i] with the bytes that belong to keys[i]. Precondition: all blocks are different.
  // Errors: those of Region::WriteBytes.
  [[nodiscard]] Status Fill(std::span<const BlockKey> keys, std::span<const std::uint32_t> blocks);
  // How many of blocks[i] have other bytes than those that belong to keys[i]. Errors: those of
  // Region::ReadBytes.
  [[nodiscard]] Result<std::size_t> CountWrong(std::span<const BlockKey> keys, std::span<const std::uint32_t> blocks);

 private:
  std::span<std::byte> InPlace(const BlockPiece& piece) const noexcept {
    return {region_.SegmentData(piece.segment) + piece.offset, piece.bytes};
  }
  Status FillCopied(std::span<const BlockKey> keys, std::span<const BlockPiece> pieces);
  Status CompareCopied(std::span<const BlockKey> keys, std::span<const BlockPiece> pieces, std::vector<bool>& wrong);

  Region& region_;
  const Access access_;
  std::vector<std::byte> buffer_;
};

}  // namespace kvm::ctl
