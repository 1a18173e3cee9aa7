// HeldChanges: what scans of kvmd's registry say of the blocks that this node holds, as far as
// events are about it. A model's blocks are those of its first rank and group: other ranks have the
// same ones.
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
  std::uint16_t model = 0;  // index into HeldChanges::models
  Media medium = 0;
};

// A replica that the node holds from now on, or no more; of the latter only key, model and medium
// are known.
struct HeldChange {
  HeldBlock block;
  bool here = false;
};

// In order: a replica that has moved may leave before it comes, or come before it leaves.
struct HeldChanges {
  bool all = false;  // the node holds what these changes say, and nothing else
  // Those of earlier changes, at the same places, and further ones; after `all` others.
  std::vector<HeldModel> models;
  std::vector<HeldChange> changes;
};

}  // namespace kvm::mesh
