#include "client/offload/store_queue.h"

namespace kvm {

GrantedSlab::~GrantedSlab() {
  for (std::shared_ptr<LocalMemory>& memory : memories) memory.reset();
  if (withdrawn) withdrawn();
}

}  // namespace kvm
