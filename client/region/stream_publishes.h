// StreamPublishes: counts PublishOnStream calls that have not taken effect yet, so that Flush can
// wait for them.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <set>

#include "kvclient/types.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// By number, in the order in which they began. Thread-safe.
class StreamPublishes {
 public:
  // One such call. Its destructor ends it, whether the publish took place or was dropped.
  class UnderWay {
   public:
    explicit UnderWay(std::shared_ptr<StreamPublishes> all);
    ~UnderWay();
    UnderWay(const UnderWay&) = delete;
    UnderWay& operator=(const UnderWay&) = delete;

   private:
    const std::shared_ptr<StreamPublishes> all_;
    const std::uint64_t number_;
  };

  // Waits until all calls that have begun so far have ended; false if that has not happened by
  // `deadline`.
  bool WaitForAll(Deadline deadline) KVM_EXCLUDES(mutex_);

 private:
  std::uint64_t Begin() KVM_EXCLUDES(mutex_);
  void End(std::uint64_t number) KVM_EXCLUDES(mutex_);

  Mutex mutex_;
  std::condition_variable ended_;
  std::uint64_t last_ KVM_GUARDED_BY(mutex_) = 0;
  std::set<std::uint64_t> under_way_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
