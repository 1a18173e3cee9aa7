#include "client/offload/offload_wait.h"

#include <string>

#include "client/connection/wait.h"

namespace kvm {

void OffloadWait::Begin(std::size_t blocks) {
  MutexLock lock(mutex_);
  open_ += blocks;
}

void OffloadWait::End(bool stored) {
  MutexLock lock(mutex_);
  --open_;
  stored_ += stored;
  ended_.notify_all();
}

Result<std::size_t> OffloadWait::Wait(Deadline deadline) {
  MutexLock lock(mutex_);
  if (!WaitUntil(ended_, lock, deadline, [&]() KVM_REQUIRES(mutex_) { return open_ == 0; })) {
    return MakeError(Errc::kDeadlineExceeded, std::to_string(open_) + " blocks are not copied to the host cache yet");
  }
  return stored_;
}

}  // namespace kvm
