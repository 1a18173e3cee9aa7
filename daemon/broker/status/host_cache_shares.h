// ShareHostCache: the slabs of a domain by user, writer and model, for those who ask who fills the
// host cache.
//
// Called for the answer to a StatusQuery, like GroupMemory (memory_groups.h).
#pragma once

#include <vector>

#include "daemon/registry/domain.h"
#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

// In the order of the slabs' rows.
[[nodiscard]] std::vector<kvmwire::HostCacheShare> ShareHostCache(Domain& domain);

}  // namespace kvm::daemon
