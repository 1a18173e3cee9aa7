// DiskKeys: keeps NodeState::disk_summary in step with the disk cache, so that peers know what this
// node could read for them. Of the io_context's thread; the disk cache is asked on a control
// thread.
#pragma once

#include "client/mesh/node/state/node_state.h"
#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

class DiskKeys {
 public:
  // `node` has a disk.
  explicit DiskKeys(NodeState& node) : node_(node) {}

  // Looks at intervals, for as long as the process runs.
  Awaitable<void> Run();
  // Looks now.
  Awaitable<void> Once();

 private:
  NodeState& node_;
  bool again_ = true;  // changes may have been lost: all keys are asked for
};

}  // namespace kvm::mesh
