#include "client/kvctl/workload/pool_bytes.h"

#include <algorithm>

#include "client/kvctl/workload/block_content.h"

namespace kvm::ctl {
namespace {

constexpr std::uint64_t kPieceBytes = 4 << 20;
// To read up to so many unneeded bytes between two pieces costs less than to wait for another copy.
constexpr std::uint64_t kReadOverBytes = 64 << 10;

std::span<std::byte> Part(std::vector<std::byte>& buffer, const BlockPiece& first, const BlockPiece& piece) {
  return std::span(buffer).subspan(piece.offset - first.offset, piece.bytes);
}

}  // namespace

Status PoolBytes::Fill(std::span<const BlockKey> keys, std::span<const std::uint32_t> blocks) {
  const std::vector<BlockPiece> pieces = PiecesOf(region_.geometry(), blocks, kPieceBytes);
  if (access_ == Access::kCopied) return FillCopied(keys, pieces);
  for (const BlockPiece& piece : pieces) FillBlock(keys[piece.block], InPlace(piece), piece.block_offset);
  return {};
}

Result<std::size_t> PoolBytes::CountWrong(std::span<const BlockKey> keys, std::span<const std::uint32_t> blocks) {
  const std::vector<BlockPiece> pieces = PiecesOf(region_.geometry(), blocks, kPieceBytes);
  std::vector<bool> wrong(blocks.size());
  if (access_ == Access::kCopied) {
    if (Status compared = CompareCopied(keys, pieces, wrong); !compared) return compared.error();
  } else {
    for (const BlockPiece& piece : pieces) {
      if (!BlockHolds(keys[piece.block], InPlace(piece), piece.block_offset)) wrong[piece.block] = true;
    }
  }
  return static_cast<std::size_t>(std::count(wrong.begin(), wrong.end(), true));
}

Status PoolBytes::FillCopied(std::span<const BlockKey> keys, std::span<const BlockPiece> pieces) {
  while (!pieces.empty()) {
    const std::span<const BlockPiece> run = pieces.first(OneCopy(pieces, 0, kPieceBytes));
    buffer_.resize(run.back().end() - run.front().offset);
    for (const BlockPiece& piece : run) FillBlock(keys[piece.block], Part(buffer_, run.front(), piece), piece.block_offset);
    if (Status written = region_.WriteBytes(run.front().segment, run.front().offset, buffer_); !written) return written;
    pieces = pieces.subspan(run.size());
  }
  return {};
}

Status PoolBytes::CompareCopied(std::span<const BlockKey> keys, std::span<const BlockPiece> pieces, std::vector<bool>& wrong) {
  while (!pieces.empty()) {
    const std::span<const BlockPiece> run = pieces.first(OneCopy(pieces, kReadOverBytes, kPieceBytes));
    buffer_.resize(run.back().end() - run.front().offset);
    if (Status read = region_.ReadBytes(run.front().segment, run.front().offset, buffer_); !read) return read;
    for (const BlockPiece& piece : run) {
      if (!BlockHolds(keys[piece.block], Part(buffer_, run.front(), piece), piece.block_offset)) wrong[piece.block] = true;
    }
    pieces = pieces.subspan(run.size());
  }
  return {};
}

}  // namespace kvm::ctl
