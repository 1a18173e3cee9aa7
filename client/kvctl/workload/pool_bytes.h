// The bytes of a pool's blocks, wherever the pool lies: filled with what their keys say, and compared.
//
// Host memory is written and read in place; a GPU's goes through a buffer, in as few copies as there are
// stretches of blocks. Readers are told nothing: BeginWrite and Publish do. Not thread-safe.
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

  // Writes to blocks[i] what keys[i] says. Blocks are all different. An error of Region::WriteBytes.
  [[nodiscard]] Status Fill(std::span<const BlockKey> keys, std::span<const std::uint32_t> blocks);
  // How many of blocks[i] hold anything else than what keys[i] says. An error of Region::ReadBytes.
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
