// DiskFeed: writes the blocks of kvmd's host cache to the disk cache, before they are evicted
// there.
//
// kvmd tells no client what it is about to evict, so blocks are written behind: the scan of the
// registry finds those that are in the host cache and not on the disk, and this writes them, the
// oldest first, at --disk-write-rate at most. A block is copied into staging memory by a validated
// import, as for a peer; one that has left the host cache by then is lost. Of the io_context's
// thread.
#pragma once

#include <span>
#include <vector>

#include "client/mesh/memory/staging_batch.h"
#include "client/mesh/node/state/node_state.h"
#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

class DiskFeed {
 public:
  // `node` has a disk.
  explicit DiskFeed(NodeState& node) : node_(node) {}

  // Opens the disk cache once kvmd has told the domain, and writes for as long as the process runs.
  Awaitable<void> Run();

 private:
  Awaitable<void> Recover();
  // Writes some blocks of one shape.
  Awaitable<void> WriteSome();
  // The next ones of one shape, off the front of those that wait.
  std::vector<CachedBlock> TakeSome();
  // They wait on, before all others.
  void PutBack(std::span<const CachedBlock> blocks);
  Awaitable<void> Pause(std::chrono::milliseconds time) const;

  NodeState& node_;
};

}  // namespace kvm::mesh
