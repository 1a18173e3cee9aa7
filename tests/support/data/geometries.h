// The KV cache layouts that engines use, all for the same model: 3 layers, K and V, 16 tokens a
// block, 2 KV heads of 8 elements of 2 bytes. Every one lists a block's bytes in the same order
// (layer, K then V, then the bytes of one [block_tokens, kv_heads, head_size] tile), so that each
// copies to each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvm/geometry.h"

namespace kvm::test {

struct NamedGeometry {
  std::string name;
  Geometry geometry;
  std::vector<std::uint64_t> segment_bytes;
};

inline constexpr std::uint32_t kLayoutLayers = 3;
inline constexpr std::uint64_t kLayoutTokens = 16, kLayoutHeads = 2, kLayoutHeadBytes = 16;
// K or V of one layer of one block
inline constexpr std::uint64_t kTileBytes = kLayoutTokens * kLayoutHeads * kLayoutHeadBytes;
inline constexpr std::uint64_t kLayoutBlockBytes = 2 * kLayoutLayers * kTileBytes;

inline std::vector<NamedGeometry> EngineLayouts(std::uint32_t blocks) {
  constexpr std::uint64_t kTile = kTileBytes;
  std::vector<NamedGeometry> out;

  out.push_back({"contiguous", Geometry::Contiguous(blocks, kLayoutBlockBytes), {blocks * kLayoutBlockBytes}});

  NamedGeometry separate{"K and V tensors per layer", {blocks, {}}, {}};
  for (std::uint32_t tensor = 0; tensor < 2 * kLayoutLayers; ++tensor) {
    separate.geometry.parts.push_back({tensor, 0, kTile, kTile, 1, 0});
    separate.segment_bytes.push_back(blocks * kTile);
  }
  out.push_back(separate);

  NamedGeometry kv_first{"[2, blocks, ...] per layer", {blocks, {}}, {}};
  for (std::uint32_t layer = 0; layer < kLayoutLayers; ++layer) {
    kv_first.geometry.parts.push_back({layer, 0, kTile, kTile, 2, blocks * kTile});
    kv_first.segment_bytes.push_back(2 * blocks * kTile);
  }
  out.push_back(kv_first);

  NamedGeometry blocks_first{"[blocks, 2, ...] per layer", {blocks, {}}, {}};
  for (std::uint32_t layer = 0; layer < kLayoutLayers; ++layer) {
    blocks_first.geometry.parts.push_back({layer, 0, 2 * kTile, 2 * kTile, 1, 0});
    blocks_first.segment_bytes.push_back(2 * blocks * kTile);
  }
  out.push_back(blocks_first);

  // One tensor [blocks, layers, 2, tile].
  out.push_back({"cross-layer, block major",
                 {blocks, {{0, 0, 2 * kTile, kLayoutBlockBytes, kLayoutLayers, 2 * kTile}}},
                 {blocks * kLayoutBlockBytes}});

  // One tensor [layers, 2, blocks, tile].
  out.push_back(
      {"cross-layer, layer major", {blocks, {{0, 0, kTile, kTile, 2 * kLayoutLayers, blocks * kTile}}}, {blocks * kLayoutBlockBytes}});

  // The logical order is [tokens, heads, size] (NHD); here the heads are stored apart, [2, heads,
  // blocks, tokens, size] per layer, so that each token's head is a chunk of its own.
  NamedGeometry heads_apart{"NHD order out of an HND tensor, per token", {blocks, {}}, {}};
  for (std::uint32_t layer = 0; layer < kLayoutLayers; ++layer) {
    for (std::uint32_t kv = 0; kv < 2; ++kv) {
      for (std::uint64_t token = 0; token < kLayoutTokens; ++token) {
        const std::uint64_t head_plane = blocks * kLayoutTokens * kLayoutHeadBytes;
        heads_apart.geometry.parts.push_back({layer, kv * kLayoutHeads * head_plane + token * kLayoutHeadBytes, kLayoutHeadBytes,
                                              kLayoutTokens * kLayoutHeadBytes, static_cast<std::uint32_t>(kLayoutHeads), head_plane});
      }
    }
    heads_apart.segment_bytes.push_back(2 * blocks * kTile);
  }
  out.push_back(heads_apart);

  // A token-major pool [2, blocks * tokens, heads, size]: contiguous per block, so one chunk per K
  // or V.
  NamedGeometry tokens_flat{"[2, slots, heads, size] per layer in one segment", {blocks, {}}, {2 * kLayoutLayers * blocks * kTile}};
  for (std::uint32_t layer = 0; layer < kLayoutLayers; ++layer) {
    tokens_flat.geometry.parts.push_back({0, 2 * layer * blocks * kTile, kTile, kTile, 2, blocks * kTile});
  }
  out.push_back(tokens_flat);
  return out;
}

}  // namespace kvm::test
