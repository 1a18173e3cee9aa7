#include "client/region/stream_publishes.h"

#include <utility>

#include "client/connection/wait.h"

namespace kvm {

StreamPublishes::UnderWay::UnderWay(std::shared_ptr<StreamPublishes> all) : all_(std::move(all)), number_(all_->Begin()) {}

StreamPublishes::UnderWay::~UnderWay() { all_->End(number_); }

std::uint64_t StreamPublishes::Begin() {
  MutexLock lock(mutex_);
  under_way_.insert(++last_);
  return last_;
}

void StreamPublishes::End(std::uint64_t number) {
  MutexLock lock(mutex_);
  under_way_.erase(number);
  ended_.notify_all();
}

bool StreamPublishes::WaitForAll(Deadline deadline) {
  MutexLock lock(mutex_);
  const std::uint64_t last = last_;
  return WaitUntil(ended_, lock, deadline, [&]() KVM_REQUIRES(mutex_) { return under_way_.empty() || *under_way_.begin() > last; });
}

}  // namespace kvm
