// HeldBlocks: what a scan of kvmd's registry says that this node holds, as far as events are about
// it. A model's blocks are those of its first rank and group: other ranks have the same ones.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvm/block_key.h"

namespace kvm::mesh {

// A set of the memories in which a block is, one bit each. Names: vLLM's media.
using Media = std::uint8_t;
inline constexpr Media kGpuMedium = 1, kCpuMedium = 2;

struct HeldModel {
  Fingerprint fingerprint;
  std::string model_id;
  std::uint32_t block_tokens = 0;
};

// One replica.
struct HeldBlock {
  BlockKey key;
  std::uint64_t parent_lo = 0;
  std::uint32_t depth = 0;
  std::uint16_t model = 0;  // index into HeldBlocks::models
  Media medium = 0;
};

struct HeldBlocks {
  std::vector<HeldModel> models;
  std::vector<HeldBlock> blocks;
};

}  // namespace kvm::mesh
