// OffloadWait: lets a caller of Region::OffloadBeforeReuse wait until its blocks have been copied
// to the host cache.
#pragma once

#include <condition_variable>
#include <cstddef>

#include "kvclient/types.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Thread-safe.
class OffloadWait {
 public:
  void Begin(std::size_t blocks) KVM_EXCLUDES(mutex_);
  void End(bool stored) KVM_EXCLUDES(mutex_);
  // Waits until all blocks have ended; returns how many were stored. kDeadlineExceeded: not all
  // have ended.
  [[nodiscard]] Result<std::size_t> Wait(Deadline deadline) KVM_EXCLUDES(mutex_);

 private:
  Mutex mutex_;
  std::condition_variable ended_;
  std::size_t open_ KVM_GUARDED_BY(mutex_) = 0, stored_ KVM_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvm
