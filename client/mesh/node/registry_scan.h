// RegistryScan: which keys this node has for its peers, and which models its workers have declared,
// read from kvmd's registry.
//
// Only blocks in host memory count: kvmd-mesh uses no CUDA and can't copy others. Calls block, up
// to a timeout, and a scan reads the whole index, so all run on a thread of their own. Not
// thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_set>

#include "client/kvctl/cli/observer.h"
#include "client/mesh/memory/shape.h"
#include "kvclient/client.h"

namespace kvm::mesh {

struct ScanResult {
  std::map<Fingerprint, Model> new_models;  // declared with kvmd since the last scan
  // Empty: nothing has changed since the last scan.
  std::optional<std::unordered_set<BlockKey>> keys;
  std::set<BlockShape> shapes;  // of the regions whose blocks these are; only with `keys`
};

class RegistryScan {
 public:
  RegistryScan(std::string kvmd_socket, std::shared_ptr<Client> client) : socket_(std::move(kvmd_socket)), client_(std::move(client)) {}

  // kUnavailable, kDeadlineExceeded: no kvmd; the next call tries again.
  [[nodiscard]] Result<ScanResult> Run();
  // The caller could not use the last result: the next call reads all of it again.
  void ReadAgain() noexcept { changes_ = 0; }

 private:
  [[nodiscard]] Status Connect();
  void DeclareNew(ScanResult& out);
  void ReadIndex(ScanResult& out) const;

  std::string socket_;
  std::shared_ptr<Client> client_;
  std::unique_ptr<ctl::Observer> observer_;
  std::map<Fingerprint, Model> declared_;
  std::uint64_t changes_ = 0;  // the registry's counters as of the last scan
};

}  // namespace kvm::mesh
