// Scanner: keeps NodeState's models, shapes and summary in step with kvmd's registry. Of the
// io_context's thread; the scan itself runs on a control thread.
#pragma once

#include "client/mesh/node/node_state.h"
#include "client/mesh/node/registry_scan.h"
#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

class Scanner {
 public:
  explicit Scanner(NodeState& node) : node_(node), scan_(node.config.kvmd_socket, node.client) {}

  // Scans at intervals, for as long as the process runs.
  Awaitable<void> Run();
  // Scans now. kUnavailable, kDeadlineExceeded: no kvmd; what is known stays.
  Awaitable<Status> Once();

 private:
  ScanPlan Plan() const;
  // If it throws, part of the result is lost.
  void Use(const ScanPlan& plan, ScanResult found);

  NodeState& node_;
  RegistryScan scan_;
  bool asked_for_blocks_ = false;
};

}  // namespace kvm::mesh
