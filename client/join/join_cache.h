// What Client::JoinCache does: asks kvmd-mesh for the blocks that Find does not find, and waits
// until Find finds them.
#pragma once

#include <span>

#include "kvclient/client.h"

namespace kvm {

// See Client::JoinCache.
JoinOutcome JoinCache(const Client& client, const Region& destination, std::span<const BlockKey> keys, const JoinOptions& options);

}  // namespace kvm
