// ScanResult: what a scan of kvmd's registry has found, and what it is asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <vector>

#include "client/mesh/directory/key_change.h"
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
  // False: nothing has changed since the last scan, and what follows is empty.
  bool read = false;
  // What follows says all that there is now, not what has changed since the last scan.
  bool all = false;
  // In host memory. Keys that are gone come first.
  std::vector<KeyChange> keys;
  std::set<BlockShape> shapes;  // of all regions in host memory
  // Blocks of the host cache that are to be stored, the oldest first, and whether there are others.
  // A block is named once for as long as it is in the host cache.
  std::vector<CachedBlock> unstored;
  bool more_unstored = false;
  HeldChanges held;  // empty unless ScanPlan::held
};

// What a scan is to find besides the keys.
struct ScanPlan {
  // Of any thread: which blocks not to name in ScanResult::unstored; null: none is to be named
  std::function<bool(const BlockKey&)> stored;
  std::size_t most = 0;  // in ScanResult::unstored
  // All blocks of the host cache are looked at for `unstored`, not just those that have come since.
  bool all_unstored = false;
  bool held = false;  // ScanResult::held is wanted
};

}  // namespace kvm::mesh
