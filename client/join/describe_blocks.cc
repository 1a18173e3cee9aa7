#include "client/join/describe_blocks.h"

#include <algorithm>

#include "client/connection/wait.h"
#include "proto/mesh/mesh_frame.h"
#include "proto/mesh/mesh_request.h"
#include "proto/mesh/mesh_socket.h"

namespace kvm {
namespace {

// Of keys and tokens; the rest of a message is small.
constexpr std::size_t kBytesOfMessage = mesh::kMaxMessageBytes - 4096;

}  // namespace

Result<DescribeOutcome> DescribeBlocks(const ModelSpec& spec, std::span<const BlockKey> keys, std::span<const std::uint32_t> tokens,
                                       const DescribeOptions& options) {
  const std::size_t block_tokens = spec.block_tokens;
  if (block_tokens == 0 || block_tokens > mesh::kMaxBlockTokens)
    return MakeError(Errc::kInvalidArgument, "describe: blocks of " + std::to_string(block_tokens) + " tokens");
  if (tokens.size() != keys.size() * block_tokens) {
    return MakeError(Errc::kInvalidArgument, "describe: " + std::to_string(tokens.size()) + " tokens for " + std::to_string(keys.size()) +
                                                 " blocks of " + std::to_string(block_tokens));
  }
  if (options.adapter.size() > mesh::kMaxAdapterBytes) return MakeError(Errc::kInvalidArgument, "describe: the adapter's name is too long");
  const std::string& socket = options.mesh_socket.empty() ? mesh::DefaultMeshSocket() : options.mesh_socket;
  const Fingerprint fingerprint = spec.ComputeFingerprint();
  const std::size_t most = std::min(mesh::kMaxKeys, kBytesOfMessage / (sizeof(BlockKey) + 4 * block_tokens));
  DescribeOutcome out;
  for (std::size_t first = 0; first < keys.size();) {
    const std::size_t count = std::min(most, keys.size() - first);
    kvmmesh::LocalMessage request;
    kvmmesh::Describe& describe = *request.mutable_describe();
    describe.set_fingerprint(fingerprint.bytes.data(), fingerprint.bytes.size());
    describe.set_block_tokens(spec.block_tokens);
    describe.set_keys(mesh::EncodeKeys(keys.subspan(first, count)));
    describe.set_tokens(mesh::EncodeTokens(tokens.subspan(first * block_tokens, count * block_tokens)));
    describe.set_adapter(options.adapter);
    const Result<kvmmesh::LocalMessage> answer = mesh::AskMesh(socket, request, options.deadline, Interrupted);
    if (!answer) return answer.error();
    if (!answer->has_described()) return MakeError(Errc::kProtocol, "describe: kvmd-mesh answered with something else");
    const kvmmesh::Described& described = answer->described();
    const bool another = first > 0 && described.process() != out.process;
    out.wanted = described.wanted();
    out.process = described.process();
    // One that was started meanwhile knows nothing of the messages before.
    if (another) {
      out.taken = 0;
      return out;
    }
    if (!described.taken()) return out;
    first += count;
    out.taken = first;
  }
  return out;
}

}  // namespace kvm
