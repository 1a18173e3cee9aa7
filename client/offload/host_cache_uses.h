// What this client has imported from kvmd's host cache and not told kvmd yet, so that its eviction policy learns of it.
#pragma once

#include <cstddef>
#include <vector>

#include "kvclient/match.h"
#include "proto/base/thread_safety.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

// Thread-safe. Bounded: a client that imports faster than it reports leaves some out.
class HostCacheUses {
 public:
  // The first `valid` blocks of `match` have been imported; how many of them came from the host cache.
  std::size_t Add(const Match& match, std::size_t valid);
  // A report of what has been added since the last call, or one without runs.
  kvmwire::ClientMessage Take();

 private:
  Mutex mutex_;
  std::vector<kvmwire::HostCacheRun> runs_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
