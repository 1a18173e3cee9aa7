// FetchService: answers a peer's requests on one connection: the summary of this node's keys, and
// blocks.
//
// A block is imported into staging memory by libkvclient, which checks its generation before and
// after the copy. From then on its bytes are private and fixed: what the owner of the block does
// later can't reach the peer. A block that only the disk cache has is read from there. Called for
// each connection that a peer opens; owns nothing.
#pragma once

#include <memory>

#include "client/mesh/node/serving/staged_copy.h"
#include "client/mesh/node/state/node_state.h"
#include "client/mesh/transfer/transfer.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::mesh {

class FetchService {
 public:
  FetchService(NodeState& node, std::shared_ptr<Channel> channel) : node_(node), channel_(std::move(channel)) {}

  // First. The peer has proven to be a node of this domain afterwards, if connections are
  // encrypted; else it says so. kPermissionDenied, and the errors of Channel.
  Awaitable<Status> Greet();
  // Until the peer closes the connection, breaks the protocol or is silent for too long.
  Awaitable<void> Serve();

 private:
  Awaitable<Status> Answer(kvmmesh::PeerMessage message);
  Awaitable<Status> SendSummary(kvmmesh::SummaryQuery query);
  Awaitable<Status> SendBlocks(kvmmesh::Fetch fetch);
  Awaitable<Result<kvmmesh::FetchEnd::Reason>> SendBatches(kvmmesh::Fetch fetch, Time deadline);
  // A request for blocks, as far as it has been answered.
  struct Asked {
    const std::uint64_t request;
    const BlockShape shape;
    const std::vector<BlockKey>& keys;
    const Time deadline;
    const std::size_t together;      // blocks in one answer
    std::shared_ptr<SlotPool> pool;  // null: no such block is in memory
    std::size_t next = 0;            // key
  };
  // Some blocks that were sent; COMPLETE: there may be more.
  struct Part {
    std::size_t blocks = 0;
    kvmmesh::FetchEnd::Reason end = kvmmesh::FetchEnd::COMPLETE;
  };
  Awaitable<Result<Part>> SendFromMemory(Asked& asked);
  Awaitable<Result<Part>> SendFromDisk(Asked& asked);
  // Null: the request has ended, or staging memory is full.
  std::unique_ptr<StagedCopy> CopyFrom(const Asked& asked, std::size_t next);
  // `blocks` is a StagingBatch or a DiskRun.
  template <class Blocks>
  Awaitable<Status> SendAll(Asked& asked, const Blocks& blocks, std::size_t count, bool from_disk);
  static std::size_t BatchBlocks(const BlockShape& shape, std::uint64_t bytes);
  bool DiskServes() const;
  // How many of `keys` are to be read from the disk next, if memory does not have the first one.
  std::size_t DiskBlocks(std::span<const BlockKey> keys) const;

  NodeState& node_;
  std::shared_ptr<Channel> channel_;
};

}  // namespace kvm::mesh
