// ComputingWaits: lookups that wait while another client computes the next block.
//
// It looks at shared memory once a millisecond: a prefill takes tens of them, and a wait in the
// kernel (futex) would have to be woken by kvmd for each publish, which every publisher would pay
// for. Client calls it. It owns the list of clients whose marks have been waited for in vain.
// Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <span>

#include "client/stats/atomic_stats.h"
#include "kvclient/computing.h"
#include "kvclient/match.h"
#include "proto/base/thread_safety.h"

namespace kvm {

class ComputingWaits {
 public:
  explicit ComputingWaits(AtomicStats& stats) : stats_(stats) {}

  // `find`: a lookup that sees marks; called until it finds all keys, sees no mark that is worth to
  // wait for, or the bound is reached. Returns the last match.
  Match Find(const WaitOptions& options, const std::function<Match()>& find) KVM_EXCLUDES(mutex_);

 private:
  bool Ignored(std::uint64_t client) KVM_EXCLUDES(mutex_);
  void Ignore(std::uint64_t client) KVM_EXCLUDES(mutex_);

  AtomicStats& stats_;
  Mutex mutex_;
  // Until when a client's marks are ignored
  std::map<std::uint64_t, Deadline> ignored_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
