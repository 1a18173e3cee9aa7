#include "client/offload/store_queue.h"

#include "client/connection/attempt.h"

namespace kvm {

GrantedSlab::~GrantedSlab() {
  for (std::shared_ptr<LocalMemory>& memory : memories) memory.reset();
  // Where memory is short, kvmd is not told, and waits for as long as it does for any client.
  if (withdrawn) Attempt(withdrawn);
}

}  // namespace kvm
