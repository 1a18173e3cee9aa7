// A peer of kvmd-mesh that speaks its protocol and answers requests for blocks as a test wants.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <optional>
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
  // Sent in steps of so many bytes, with a pause before each; 0: at once.
  std::size_t step_bytes = 0;
  std::chrono::milliseconds pause{};
};

class LyingPeer {
 public:
  using Lie = std::function<std::vector<PeerAnswer>(const kvmmesh::Fetch&)>;

  // Listens on the loopback. `claimed`: the keys that its summary contains.
  LyingPeer(std::string node, std::string domain, std::vector<BlockKey> claimed, Lie lie);
  ~LyingPeer();

  // The following are set before a mesh process connects.
  // Closes a connection after each answer to a request for blocks or for the summary.
  void CloseAfterAnswers() { closes_after_answers_ = true; }
  // Answers the question for its summary so; `payload` may be longer or shorter than the message
  // says.
  void AnswerSummaries(PeerAnswer answer) { summary_answer_ = std::move(answer); }
  // The same for the summary of its disk cache.
  void AnswerDiskSummaries(PeerAnswer answer) { disk_answer_ = std::move(answer); }

  std::string as_peer() const;
  int summaries() const noexcept { return summaries_.load(); }  // questions for its summary so far
  int fetches() const noexcept { return fetches_.load(); }      // requests for blocks so far

 private:
  void Accept();
  void Serve(int socket);
  bool Send(int socket, const PeerAnswer& answer) const;
  kvmmesh::PeerMessage Answer(const kvmmesh::PeerMessage& asked, std::string& payload) const;

  std::string node_, domain_;
  mesh::NodeSummary summary_;
  Lie lie_;
  UniqueFd listener_;
  unsigned port_ = 0;
  bool closes_after_answers_ = false;
  std::optional<PeerAnswer> summary_answer_, disk_answer_;
  std::atomic<int> fetches_{0}, summaries_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::jthread> threads_;
  std::jthread acceptor_;
};

// A block of a fetch, or several in one answer, as an honest peer would send them.
PeerAnswer HonestBlocks(const kvmmesh::Fetch& fetch, std::uint32_t index, std::uint32_t count);
inline PeerAnswer HonestBlock(const kvmmesh::Fetch& fetch, std::uint32_t index) { return HonestBlocks(fetch, index, 1); }
// The end of a fetch that had all blocks.
PeerAnswer EndOf(const kvmmesh::Fetch& fetch);
// All blocks, and the end.
std::vector<PeerAnswer> HonestAnswer(const kvmmesh::Fetch& fetch);

}  // namespace kvm::test
