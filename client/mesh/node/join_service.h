// JoinService: makes blocks local for workers of this node, who ask over a Unix socket.
//
// A request never fails because of a peer: the answer is how many leading blocks are here now. It
// ranks the peers by how far the prefix reaches into their summaries, then by speed and load, asks
// a few of them one after another, and answers before the worker's deadline. Of the io_context's
// thread.
#pragma once

#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "client/mesh/node/node_state.h"
#include "client/mesh/node/peer.h"
#include "client/mesh/node/scanner.h"

namespace kvm::mesh {

class JoinService {
 public:
  JoinService(NodeState& node, Scanner& scanner, std::vector<std::unique_ptr<Peer>>& peers)
      : node_(node), scanner_(scanner), peers_(peers) {}

  // Requests of one connection, until it ends.
  Awaitable<void> Serve(std::shared_ptr<Channel> channel);

 private:
  Awaitable<kvmmesh::Joined> Join(kvmmesh::Join join, Time deadline);
  // Blocks of the prefix that this node has, as the mesh process or the worker finds them.
  std::size_t Local(std::span<const BlockKey> keys, std::size_t known) const;
  Awaitable<std::size_t> FetchFromPeers(const BlockShape& shape, std::span<const BlockKey> keys, const kvmmesh::Join& join, Time deadline,
                                        std::string& reason);
  Awaitable<Result<std::shared_ptr<SlotPool>>> Pool(const BlockShape& shape);
  Peer* Best(std::span<const BlockKey> keys, std::size_t local, const kvmmesh::Join& join, const std::vector<Peer*>& asked,
             std::size_t& depth) const;
  Awaitable<void> Pause(std::chrono::milliseconds time);
  kvmmesh::Status Describe() const;

  NodeState& node_;
  Scanner& scanner_;
  std::vector<std::unique_ptr<Peer>>& peers_;
  std::unordered_set<BlockKey> fetching_;  // the first key that each request under way lacks
};

}  // namespace kvm::mesh
