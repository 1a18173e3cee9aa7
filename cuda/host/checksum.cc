#include "cuda/host/checksum.h"

#include <algorithm>
#include <cstring>

namespace kvm {

std::uint64_t ChecksumBlock(const Geometry& geometry, std::span<const std::byte* const> bases, std::uint32_t block) noexcept {
  std::uint64_t sum = 0, index = 0, bytes = 0, word = 0;
  std::size_t filled = 0;  // bytes of `word`; a word may lie across chunks
  for (const GeometryPart& part : geometry.parts) {
    for (std::uint32_t r = 0; r < part.count; ++r) {
      const std::byte* at = bases[part.segment] + part.offset + r * part.repeat_stride + block * part.block_stride;
      std::uint64_t left = part.chunk_bytes;
      bytes += left;
      for (; filled == 0 && left >= 8; at += 8, left -= 8) {  // nearly all words lie in one chunk
        std::memcpy(&word, at, 8);
        sum += ChecksumWord(index++, word);
      }
      word = filled == 0 ? 0 : word;
      while (left > 0) {
        const std::size_t take = std::min<std::uint64_t>(left, 8 - filled);
        std::memcpy(reinterpret_cast<std::byte*>(&word) + filled, at, take);
        at += take;
        left -= take;
        filled += take;
        if (filled < 8) continue;
        sum += ChecksumWord(index++, word);
        word = 0;
        filled = 0;
      }
    }
  }
  if (filled > 0) sum += ChecksumWord(index, word);
  return CloseChecksum(sum, bytes);
}

}  // namespace kvm
