#include "client/mesh/events/block_description.h"

#include <cstring>
#include <utility>

#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {

Result<BlockDescription> DecodeDescription(const kvmmesh::Describe& message) {
  BlockDescription out;
  if (message.fingerprint().size() != out.fingerprint.bytes.size()) return MakeError(Errc::kProtocol, "a fingerprint has 32 bytes");
  std::memcpy(out.fingerprint.bytes.data(), message.fingerprint().data(), out.fingerprint.bytes.size());
  out.block_tokens = message.block_tokens();
  if (out.block_tokens == 0 || out.block_tokens > kMaxBlockTokens)
    return MakeError(Errc::kProtocol, "blocks of " + std::to_string(out.block_tokens) + " tokens");
  if (message.adapter().size() > kMaxAdapterBytes) return MakeError(Errc::kProtocol, "the adapter's name is too long");
  out.adapter = message.adapter();
  Result<std::vector<BlockKey>> keys = DecodeKeys(message.keys());
  if (!keys) return keys.error();
  out.keys = std::move(*keys);
  Result<std::vector<std::uint32_t>> tokens = DecodeTokens(message.tokens());
  if (!tokens) return tokens.error();
  if (tokens->size() != out.keys.size() * out.block_tokens)
    return MakeError(Errc::kProtocol, std::to_string(tokens->size()) + " tokens for " + std::to_string(out.keys.size()) + " blocks");
  out.tokens = std::move(*tokens);
  return out;
}

}  // namespace kvm::mesh
