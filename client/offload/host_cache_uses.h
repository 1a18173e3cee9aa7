// HostCacheUses: what this client has imported and not reported yet. The reports tell kvmd's
// eviction policy of the blocks that came from its host cache, and kvmd of the prefixes that are
// used most, wherever they came from.
#pragma once

#include <cstddef>
#include <vector>

#include "kvclient/match.h"
#include "proto/base/thread_safety.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

// Thread-safe. Bounded: if a client imports faster than it reports, some uses are not reported.
class HostCacheUses {
 public:
  // Notes that the first `valid` blocks of `match` have been imported; returns how many of them
  // came from the host cache.
  std::size_t Add(const Match& match, std::size_t valid);
  // A report of all uses that were added since the last call; empty if there were none.
  kvmwire::ClientMessage Take();

 private:
  Mutex mutex_;
  std::vector<kvmwire::HostCacheRun> runs_ KVM_GUARDED_BY(mutex_);
  std::vector<kvmwire::HostCacheRun> imports_ KVM_GUARDED_BY(mutex_);  // each by its last block
};

}  // namespace kvm
