// RegistryScan: which keys this node has for its peers, and which models its workers have declared,
// read from kvmd's registry.
//
// For peers, only blocks in host memory count: kvmd-mesh uses no CUDA and can't copy others.
// Routers are told of all blocks that workers of this node can import. Calls block, up to a
// timeout, and a scan reads the whole index, so all run on a thread of their own. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_set>
#include <vector>

#include "client/kvctl/cli/observer.h"
#include "client/mesh/events/held_blocks.h"
#include "client/mesh/memory/shape.h"
#include "kvclient/client.h"

namespace kvm::mesh {

// A block of kvmd's host cache.
struct CachedBlock {
  BlockKey key;
  std::uint64_t parent_lo = 0;
  std::uint32_t depth = 0;
  std::uint32_t published_s = 0;
  BlockShape shape;
};

struct ScanResult {
  std::map<Fingerprint, Model> new_models;  // declared with kvmd since the last scan
  // Empty: nothing has changed since the last scan.
  std::optional<std::unordered_set<BlockKey>> keys;
  std::set<BlockShape> shapes;  // of the regions whose blocks these are; only with `keys`
  // Blocks of the host cache that are to be stored, the oldest first, and whether there are others;
  // only with `keys`. A block is named once for as long as it is in the host cache.
  std::vector<CachedBlock> unstored;
  bool more_unstored = false;
  HeldBlocks held;  // only with `keys`, and if ScanPlan asks for it
};

// What a scan is to find besides the keys.
struct ScanPlan {
  // Of any thread: which blocks not to name in ScanResult::unstored; null: none is to be named
  std::function<bool(const BlockKey&)> stored;
  std::size_t most = 0;  // in ScanResult::unstored
  bool held = false;     // ScanResult::held is wanted
};

class RegistryScan {
 public:
  RegistryScan(std::string kvmd_socket, std::shared_ptr<Client> client) : socket_(std::move(kvmd_socket)), client_(std::move(client)) {}

  // kUnavailable, kDeadlineExceeded: no kvmd; the next call tries again.
  [[nodiscard]] Result<ScanResult> Run(const ScanPlan& plan = {});
  // The caller could not use the last result: the next call reads all of it again.
  void ReadAgain() noexcept { changes_ = 0; }

 private:
  [[nodiscard]] Status Connect();
  void DeclareNew(ScanResult& out);
  // What a row of the region table means for its blocks.
  struct RowUse {
    std::uint32_t served_epoch = 0;    // of the region; 0: its blocks are not served
    std::optional<BlockShape> cached;  // a slab's, if blocks are to be stored
    std::uint32_t held_epoch = 0;      // 0: routers are not told of its blocks
    std::uint16_t model = 0;           // index into ScanResult::held
    Media medium = 0;
  };
  std::vector<RowUse> ReadRows(const ScanPlan& plan, ScanResult& out);
  void ReadIndex(const ScanPlan& plan, ScanResult& out);
  // Keeps the oldest `most` ones, in order.
  static void KeepOldest(std::vector<CachedBlock>& blocks, std::size_t most);

  std::string socket_;
  std::shared_ptr<Client> client_;
  std::unique_ptr<ctl::Observer> observer_;
  std::map<Fingerprint, Model> declared_;
  std::unordered_set<BlockKey> named_;  // in `unstored`, and still in the host cache
  std::uint64_t changes_ = 0;           // the registry's counters as of the last scan
};

}  // namespace kvm::mesh
