// GroupMemory: the regions of a domain by model, kind of memory and device, for those who watch it.
//
// Called for the answer to a StatusQuery. One group stands for any number of regions, so the answer
// stays small where a model has hundreds of ranks.
#pragma once

#include <vector>

#include "daemon/registry/domain.h"
#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

// Of the regions that serve, in the order of their rows.
[[nodiscard]] std::vector<kvmwire::MemoryGroup> GroupMemory(Domain& domain);

}  // namespace kvm::daemon
