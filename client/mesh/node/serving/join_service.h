// JoinService: makes blocks local for workers of this node.
//
// A request never fails because of a source: the answer is how many leading blocks are here now. It
// asks up to three sources one after another, each chosen by ChooseSource, and answers before the
// worker's deadline. WorkerService calls it. Of the io_context's thread.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "client/mesh/node/peers/peer_list.h"
#include "client/mesh/node/serving/join_log.h"
#include "client/mesh/node/state/node_state.h"
#include "client/mesh/node/state/scanner.h"
#include "client/mesh/sources/source.h"
#include "client/mesh/sources/source_choice.h"
#include "proto/base/secret_hash.h"

namespace kvm::mesh {

class JoinService {
 public:
  // `disk`: null if there is no disk cache; may be set until the first join.
  JoinService(NodeState& node, Scanner& scanner, const PeerList& peers, const std::shared_ptr<Source>& disk)
      : node_(node), scanner_(scanner), peers_(peers), disk_(disk) {}

  // Answers within the time that the request has.
  Awaitable<kvmmesh::Joined> Join(kvmmesh::Join join);
  // What Join would do now.
  kvmmesh::ExplainAnswer Explain(const kvmmesh::Join& join) const;
  const JoinLog& log() const noexcept { return log_; }

 private:
  struct Run;  // one request
  class Fetching;

  // Brings what it can, and notes in `run` how many blocks, and why no more.
  Awaitable<void> BringMissing(Run& run);
  // The peers of now, and the disk.
  std::vector<std::shared_ptr<Source>> Sources() const;
  Awaitable<void> FetchFromSources(Run& run);
  // Asks one source. False: it is of no use to ask another one.
  Awaitable<bool> FetchFrom(Source& source, std::size_t depth, Run& run);
  Choice Choose(std::span<const BlockKey> keys, std::size_t local, const kvmmesh::Join& join, std::uint64_t block_bytes,
                const std::vector<std::shared_ptr<Source>>& sources, const std::vector<std::shared_ptr<Source>>& asked) const;
  // Blocks of the prefix that this node has, as the mesh process or the worker finds them.
  std::size_t Local(std::span<const BlockKey> keys, std::size_t known) const;
  // Looks until the node has `expected` blocks, or `by` has come.
  Awaitable<std::size_t> WaitUntilIndexed(const Run& run, std::size_t expected) const;
  Awaitable<Result<std::shared_ptr<SlotPool>>> Pool(const BlockShape& shape);
  Awaitable<void> Pause(std::chrono::milliseconds time) const;

  NodeState& node_;
  Scanner& scanner_;
  const PeerList& peers_;
  const std::shared_ptr<Source>& disk_;
  // The first key that each request under way lacks
  std::unordered_set<BlockKey, SecretHash> fetching_;
  JoinLog log_;
};

}  // namespace kvm::mesh
