#include "client/mesh/memory/shape.h"

#include <cstring>
#include <limits>

namespace kvm::mesh {

Result<BlockShape> BlockShape::FromMessage(const kvmmesh::BlockShape& message, std::uint64_t max_block_bytes) {
  BlockShape out;
  if (message.fingerprint().size() != out.fingerprint.bytes.size()) return MakeError(Errc::kProtocol, "a fingerprint has 32 bytes");
  std::memcpy(out.fingerprint.bytes.data(), message.fingerprint().data(), out.fingerprint.bytes.size());
  for (const std::uint32_t number : {message.tp_rank(), message.tp_size(), message.pp_rank(), message.pp_size(), message.kv_group()})
    if (number > std::numeric_limits<std::uint16_t>::max()) return MakeError(Errc::kProtocol, "a shard's number is out of range");
  out.shard = {static_cast<std::uint16_t>(message.tp_rank()), static_cast<std::uint16_t>(message.tp_size()),
               static_cast<std::uint16_t>(message.pp_rank()), static_cast<std::uint16_t>(message.pp_size()),
               static_cast<std::uint16_t>(message.kv_group())};
  if (Status valid = out.shard.Validate(); !valid) return MakeError(Errc::kProtocol, valid.error().message);
  if (message.block_bytes() == 0 || message.block_bytes() > max_block_bytes)
    return MakeError(Errc::kProtocol, "blocks of " + std::to_string(message.block_bytes()) + " bytes");
  out.block_bytes = message.block_bytes();
  return out;
}

kvmmesh::BlockShape BlockShape::ToMessage() const {
  kvmmesh::BlockShape out;
  out.set_fingerprint(fingerprint.bytes.data(), fingerprint.bytes.size());
  out.set_tp_rank(shard.tp_rank);
  out.set_tp_size(shard.tp_size);
  out.set_pp_rank(shard.pp_rank);
  out.set_pp_size(shard.pp_size);
  out.set_kv_group(shard.kv_group);
  out.set_block_bytes(block_bytes);
  return out;
}

}  // namespace kvm::mesh
