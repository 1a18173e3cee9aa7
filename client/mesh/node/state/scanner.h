// Scanner: keeps NodeState's models, shapes and summary in step with kvmd's registry. Of the
// io_context's thread; the scan itself runs on a control thread.
#pragma once

#include <cstdint>

#include "client/mesh/node/state/node_state.h"
#include "client/mesh/scan/registry_scan.h"
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
  // One line for each loss of kvmd, and one for each time that it is there.
  void LogKvmd(const Status& scanned);
  // If it throws, part of the result is lost.
  void Use(const ScanPlan& plan, ScanResult found);

  NodeState& node_;
  RegistryScan scan_;
  bool asked_for_blocks_ = false;
  enum class Kvmd : std::uint8_t { kUnknown, kConnected, kLost } kvmd_ = Kvmd::kUnknown;
};

}  // namespace kvm::mesh
