// A peer of kvmd-mesh that speaks its protocol and answers requests for blocks as a test wants.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "client/mesh/directory/node_summary.h"
#include "proto/base/unique_fd.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::test {

struct PeerAnswer {
  kvmmesh::PeerMessage message;
  std::string payload;
};

class LyingPeer {
 public:
  using Lie = std::function<std::vector<PeerAnswer>(const kvmmesh::Fetch&)>;

  // Listens on the loopback. `claimed`: the keys that its summary contains.
  LyingPeer(std::string node, std::string domain, std::vector<BlockKey> claimed, Lie lie);
  ~LyingPeer();

  std::string as_peer() const;
  int fetches() const noexcept { return fetches_.load(); }  // requests for blocks so far

 private:
  void Accept();
  void Serve(int socket);
  kvmmesh::PeerMessage Answer(const kvmmesh::PeerMessage& asked, std::string& payload) const;

  std::string node_, domain_;
  mesh::NodeSummary summary_;
  Lie lie_;
  UniqueFd listener_;
  unsigned port_ = 0;
  std::atomic<int> fetches_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::jthread> threads_;
  std::jthread acceptor_;
};

// A block of a fetch as an honest peer would send it.
PeerAnswer HonestBlock(const kvmmesh::Fetch& fetch, std::uint32_t index);

}  // namespace kvm::test
