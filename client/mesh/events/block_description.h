// BlockDescription: what a worker tells of blocks, from kvmmesh.Describe, checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvm/block_key.h"
#include "kvm/error.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::mesh {

struct BlockDescription {
  Fingerprint fingerprint;
  std::uint32_t block_tokens = 0;
  std::vector<BlockKey> keys;
  std::vector<std::uint32_t> tokens;  // block_tokens for each key
  std::string adapter;
};

// kProtocol: a field is missing or out of range, or there are not block_tokens for each key.
[[nodiscard]] Result<BlockDescription> DecodeDescription(const kvmmesh::Describe& message);

}  // namespace kvm::mesh
