// What a peer and a worker send to kvmd-mesh: frames, messages, and the bytes that these describe.
// Input: a frame, and what follows it.
#include <algorithm>
#include <cstring>
#include <string>

#include "client/mesh/directory/peer_summary.h"
#include "client/mesh/events/block_description.h"
#include "client/mesh/memory/shape.h"
#include "proto/mesh/mesh_frame.h"
#include "tests/fuzz/targets.h"

namespace kvm::fuzz {
namespace {

constexpr std::uint64_t kMaxBlockBytes = std::uint64_t{64} << 20;

void TakeKeys(const std::string& bytes) {
  const Result<std::vector<BlockKey>> keys = mesh::DecodeKeys(bytes);
  if (keys && mesh::EncodeKeys(*keys) != bytes) Broken("keys are the same when they are written again");
}

void TakeShape(const kvmmesh::BlockShape& message) {
  const Result<mesh::BlockShape> shape = mesh::BlockShape::FromMessage(message, kMaxBlockBytes);
  if (!shape) return;
  const Result<mesh::BlockShape> again = mesh::BlockShape::FromMessage(shape->ToMessage(), kMaxBlockBytes);
  if (!again || *again != *shape) Broken("a shape that is taken is the same when it is written and read again");
  if (shape->block_bytes == 0 || shape->block_bytes > kMaxBlockBytes) Broken("a shape's blocks are within the limit");
}

// As Peer does: after a refusal the summary is what it was.
void TakeSummary(const kvmmesh::Summary& message, std::string payload) {
  mesh::PeerSummary summary;
  for (const bool snapshot : {true, message.snapshot()}) {
    const std::uint64_t epoch = summary.epoch(), sequence = summary.sequence();
    const mesh::SummaryImage image{message.epoch(), message.sequence(), snapshot, message.buckets(), message.keys(), payload};
    const Status applied = summary.Apply(image);
    if (!applied && (summary.epoch() != epoch || summary.sequence() != sequence)) Broken("a summary that is refused changes nothing");
    const std::vector<BlockKey> keys{{1, 2}, {message.epoch(), message.sequence()}, {3, 4}};
    if (summary.MatchedDepth(keys, 1) > keys.size() || summary.MatchedDepth(keys, 1) < 1) Broken("a depth is within the prefix");
    std::reverse(payload.begin(), payload.end());
  }
}

void TakePeerMessage(const std::string& bytes, const std::string& payload) {
  kvmmesh::PeerMessage message;
  if (!message.ParseFromString(bytes)) return;
  if (message.has_fetch()) {
    TakeKeys(message.fetch().keys());
    TakeShape(message.fetch().shape());
  }
  if (message.has_blocks()) TakeKeys(message.blocks().keys());
  if (message.has_summary()) TakeSummary(message.summary(), payload);
}

void TakeLocalMessage(const std::string& bytes) {
  kvmmesh::LocalMessage message;
  if (!message.ParseFromString(bytes)) return;
  if (message.has_join()) {
    TakeKeys(message.join().keys());
    TakeShape(message.join().shape());
  }
  if (!message.has_describe()) return;
  const Result<mesh::BlockDescription> description = mesh::DecodeDescription(message.describe());
  if (description && description->tokens.size() != description->keys.size() * description->block_tokens)
    Broken("a description that is taken has the tokens of all its blocks");
}

std::string Frame(const std::string& message, const std::string& payload) {
  const mesh::MeshHeaderBytes header =
      mesh::EncodeMeshHeader({static_cast<std::uint32_t>(message.size()), static_cast<std::uint64_t>(payload.size())});
  return std::string(reinterpret_cast<const char*>(header.data()), header.size()) + message + payload;
}

}  // namespace

void MeshMessagesTarget(Bytes input) {
  if (input.size() < mesh::kMeshHeaderBytes) return;
  mesh::MeshHeaderBytes bytes{};
  std::memcpy(bytes.data(), input.data(), bytes.size());
  const std::string rest(reinterpret_cast<const char*>(input.data()) + bytes.size(), input.size() - bytes.size());
  const Result<mesh::MeshFrameHeader> header = mesh::DecodeMeshHeader(bytes);
  if (header) {
    if (mesh::EncodeMeshHeader(*header) != bytes) Broken("a header is the same when it is written again");
    if (header->message_bytes > mesh::kMaxMessageBytes || header->payload_bytes > mesh::kMaxPayloadBytes)
      Broken("a frame that is taken is within the limits");
  }
  // The lengths of the header, as far as there are bytes.
  const std::size_t message_bytes = std::min<std::size_t>(header ? header->message_bytes : rest.size(), rest.size());
  const std::string message = rest.substr(0, message_bytes);
  TakePeerMessage(message, rest.substr(message_bytes));
  TakeLocalMessage(message);
}

std::vector<std::string> MeshMessagesSeeds() {
  std::vector<std::string> out;
  kvmmesh::BlockShape shape;
  shape.set_fingerprint(std::string(32, 'f'));
  shape.set_tp_size(1);
  shape.set_pp_size(1);
  shape.set_block_bytes(4096);
  kvmmesh::PeerMessage fetch, blocks, snapshot, delta;
  *fetch.mutable_fetch()->mutable_shape() = shape;
  fetch.mutable_fetch()->set_keys(std::string(32, 'k'));
  out.push_back(Frame(fetch.SerializeAsString(), ""));
  blocks.mutable_blocks()->set_keys(std::string(16, 'k'));
  blocks.mutable_blocks()->set_bytes(8);
  blocks.mutable_blocks()->add_checksums(1);
  out.push_back(Frame(blocks.SerializeAsString(), "12345678"));
  snapshot.mutable_summary()->set_epoch(5);
  snapshot.mutable_summary()->set_sequence(1);
  snapshot.mutable_summary()->set_snapshot(true);
  snapshot.mutable_summary()->set_buckets(4);
  out.push_back(Frame(snapshot.SerializeAsString(), std::string(32, 's')));
  delta = snapshot;
  delta.mutable_summary()->set_snapshot(false);
  out.push_back(Frame(delta.SerializeAsString(), std::string("\x01\0\0\0", 4) + "12345678"));
  kvmmesh::LocalMessage join, describe;
  *join.mutable_join()->mutable_shape() = shape;
  join.mutable_join()->set_keys(std::string(16, 'k'));
  out.push_back(Frame(join.SerializeAsString(), ""));
  describe.mutable_describe()->set_fingerprint(std::string(32, 'f'));
  describe.mutable_describe()->set_block_tokens(2);
  describe.mutable_describe()->set_keys(std::string(16, 'k'));
  describe.mutable_describe()->set_tokens(std::string(8, 't'));
  out.push_back(Frame(describe.SerializeAsString(), ""));
  return out;
}

}  // namespace kvm::fuzz
