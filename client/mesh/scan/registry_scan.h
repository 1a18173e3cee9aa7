// RegistryScan: which keys this node has for its peers, and which models its workers have declared,
// read from kvmd's registry: all of it once, then what has changed.
//
// For peers, only blocks in host memory count: kvmd-mesh uses no CUDA and can't copy others.
// Routers are told of all blocks that workers of this node can import. Calls block, up to a
// timeout, and a scan looks at each slot of the index, so all run on a thread of their own. Not
// thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/kvctl/cli/observer.h"
#include "client/mesh/scan/index_scan.h"
#include "client/mesh/scan/scan_result.h"
#include "kvclient/client.h"

namespace kvm::mesh {

class RegistryScan {
 public:
  RegistryScan(std::string kvmd_socket, std::shared_ptr<Client> client) : socket_(std::move(kvmd_socket)), client_(std::move(client)) {}

  // kUnavailable, kDeadlineExceeded: no kvmd; the next call tries again.
  [[nodiscard]] Result<ScanResult> Run(const ScanPlan& plan = {});
  // Of any thread. The caller could not use a result: the next call reads all of it again.
  void ReadAgain() noexcept { again_ = true; }

 private:
  [[nodiscard]] Status Connect();
  void Forget() noexcept;
  void DeclareNew(ScanResult& out);
  std::vector<RowUse> ReadRows(const ScanPlan& plan, ScanResult& out);

  std::string socket_;
  std::shared_ptr<Client> client_;
  std::unique_ptr<ctl::Observer> observer_;
  std::map<Fingerprint, Model> declared_;
  std::vector<HeldModel> held_models_;  // that a result has named; they keep their places
  IndexScan index_;
  std::uint64_t changes_ = 0;  // the registry's counters as of the last scan
  std::atomic<bool> again_{false};
};

}  // namespace kvm::mesh
