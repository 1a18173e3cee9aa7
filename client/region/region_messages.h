// What kvmd is told of a region's end.
#pragma once

#include <cstdint>

#include "client/offload/offload_source.h"
#include "kvclient/types.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

// Takes a region out. As a request: kvmd answers once importers have let go of it, or after
// `ack_timeout_ms`. As a message without an answer: nobody waits for them.
kvmwire::ClientMessage Unregistration(const RegionRow& row, std::uint32_t ack_timeout_ms = 0);

// A little less than a caller with this deadline waits, so that kvmd is the one to say what is
// missing.
std::uint32_t AckTimeoutMs(Deadline deadline);

}  // namespace kvm
