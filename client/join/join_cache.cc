#include "client/join/join_cache.h"

#include <algorithm>

#include "client/connection/wait.h"
#include "proto/mesh/mesh_frame.h"
#include "proto/mesh/mesh_request.h"
#include "proto/mesh/mesh_socket.h"

namespace kvm {
namespace {

constexpr std::size_t kMaxHintBytes = 63;
// Pause between two looks for a region that has been announced and is being mapped.
constexpr std::chrono::milliseconds kLook{1};

kvmmesh::LocalMessage MakeRequest(const Region& destination, std::span<const BlockKey> keys, std::size_t known,
                                  const JoinOptions& options) {
  kvmmesh::LocalMessage message;
  kvmmesh::Join& join = *message.mutable_join();
  kvmmesh::BlockShape& shape = *join.mutable_shape();
  const Fingerprint& fingerprint = destination.model().fingerprint;
  shape.set_fingerprint(fingerprint.bytes.data(), fingerprint.bytes.size());
  shape.set_tp_rank(destination.shard().tp_rank);
  shape.set_tp_size(destination.shard().tp_size);
  shape.set_pp_rank(destination.shard().pp_rank);
  shape.set_pp_size(destination.shard().pp_size);
  shape.set_kv_group(destination.shard().kv_group);
  shape.set_block_bytes(destination.block_bytes());
  join.set_keys(mesh::EncodeKeys(keys));
  const auto left = std::chrono::floor<std::chrono::milliseconds>(options.deadline - std::chrono::steady_clock::now()).count();
  join.set_within_ms(static_cast<std::uint32_t>(std::clamp<std::int64_t>(left, 0, 600'000)));
  join.set_min_blocks(static_cast<std::uint32_t>(std::min(options.min_blocks, keys.size() + 1)));
  join.set_source_hint(options.source_hint.substr(0, kMaxHintBytes));
  join.set_known(static_cast<std::uint32_t>(known));
  const std::uint32_t block_tokens = destination.model().spec.block_tokens;
  if (options.prefill_tokens_per_s > 0 && block_tokens > 0) join.set_prefill_blocks_per_s(options.prefill_tokens_per_s / block_tokens);
  return message;
}

}  // namespace

JoinOutcome JoinCache(const Client& client, const Region& destination, std::span<const BlockKey> keys, const JoinOptions& options) {
  JoinOutcome out;
  const FindOptions find{.destination = &destination};
  out.blocks = client.Find(keys, find).size();
  if (out.blocks == keys.size()) return out;
  const std::span<const BlockKey> asked = keys.first(std::min(keys.size(), mesh::kMaxKeys));
  const std::string& socket = options.mesh_socket.empty() ? mesh::DefaultMeshSocket() : options.mesh_socket;
  if (out.blocks >= asked.size()) {
    out.reason = "kvmd-mesh takes " + std::to_string(mesh::kMaxKeys) + " keys at a time";
    return out;
  }
  const Result<kvmmesh::LocalMessage> answer =
      mesh::AskMesh(socket, MakeRequest(destination, asked, out.blocks, options), options.deadline, Interrupted);
  if (!answer || !answer->has_joined()) {
    out.reason = answer ? "kvmd-mesh answered with something else" : answer.error().ToString();
    out.blocks = client.Find(keys, find).size();  // some may have arrived
    return out;
  }
  const kvmmesh::Joined& joined = answer->joined();
  // This process may be about to map the region in which the blocks are.
  const std::size_t expected = std::min<std::size_t>(joined.local(), asked.size());
  out.blocks = client.Find(keys, find).size();
  while (joined.fetched() > 0 && out.blocks < expected && std::chrono::steady_clock::now() < options.deadline && Sleep(kLook))
    out.blocks = client.Find(keys, find).size();
  out.fetched = std::min<std::size_t>(joined.fetched(), asked.size());
  if (out.blocks < keys.size()) out.reason = joined.reason();
  return out;
}

}  // namespace kvm
