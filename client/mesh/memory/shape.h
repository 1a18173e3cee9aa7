// BlockShape: what the blocks of a request look like, from kvmmesh.BlockShape, checked.
#pragma once

#include <compare>
#include <cstdint>

#include "kvm/block_key.h"
#include "kvm/error.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::mesh {

struct BlockShape {
  Fingerprint fingerprint;
  Shard shard;
  std::uint64_t block_bytes = 0;

  friend auto operator<=>(const BlockShape&, const BlockShape&) = default;

  // kProtocol: a field is missing, out of range, or block_bytes is 0 or above `max_block_bytes`.
  [[nodiscard]] static Result<BlockShape> FromMessage(const kvmmesh::BlockShape& message, std::uint64_t max_block_bytes);
  kvmmesh::BlockShape ToMessage() const;
};

}  // namespace kvm::mesh
