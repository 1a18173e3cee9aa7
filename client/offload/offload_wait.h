// Blocks on their way to the host cache that somebody waits for (Region::OffloadBeforeReuse).
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
  // How many ended as stored. kDeadlineExceeded: not all have ended.
  [[nodiscard]] Result<std::size_t> Wait(Deadline deadline) KVM_EXCLUDES(mutex_);

 private:
  Mutex mutex_;
  std::condition_variable ended_;
  std::size_t open_ KVM_GUARDED_BY(mutex_) = 0, stored_ KVM_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvm
