#include "client/kvctl/workload/block_pieces.h"

#include <algorithm>
#include <tuple>

namespace kvm::ctl {

std::vector<BlockPiece> PiecesOf(const Geometry& geometry, std::span<const std::uint32_t> blocks, std::uint64_t max_bytes) {
  std::vector<BlockPiece> pieces;
  pieces.reserve(blocks.size() * geometry.ChunksPerBlock());
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    std::uint64_t block_offset = 0;
    for (const GeometryPart& part : geometry.parts) {
      for (std::uint32_t repeat = 0; repeat < part.count; ++repeat) {
        const std::uint64_t offset = part.offset + repeat * part.repeat_stride + blocks[i] * part.block_stride;
        for (std::uint64_t done = 0; done < part.chunk_bytes; done += max_bytes) {
          pieces.push_back({part.segment, offset + done, std::min(max_bytes, part.chunk_bytes - done), i, block_offset + done});
        }
        block_offset += part.chunk_bytes;
      }
    }
  }
  const auto address = [](const BlockPiece& piece) { return std::tuple(piece.segment, piece.offset); };
  std::sort(pieces.begin(), pieces.end(), [&](const BlockPiece& a, const BlockPiece& b) { return address(a) < address(b); });
  return pieces;
}

std::size_t OneCopy(std::span<const BlockPiece> pieces, std::uint64_t max_gap, std::uint64_t max_bytes) {
  std::size_t count = std::min<std::size_t>(pieces.size(), 1);
  while (count < pieces.size()) {
    const BlockPiece &last = pieces[count - 1], &next = pieces[count];
    if (next.segment != last.segment || next.offset - last.end() > max_gap || next.end() - pieces.front().offset > max_bytes) break;
    ++count;
  }
  return count;
}

}  // namespace kvm::ctl
