// The messages about a region's end.
#pragma once

#include <cstdint>

#include "client/offload/offload_source.h"
#include "kvclient/types.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

// Unregisters a region. Sent as a request, kvmd answers once importers have unmapped it, or after
// `ack_timeout_ms`. Sent without a request id, kvmd does not wait for importers.
kvmwire::ClientMessage Unregistration(const RegionRow& row, std::uint32_t ack_timeout_ms = 0);

// A little less than the time until `deadline`, so that kvmd answers, with the reason, before the
// caller's deadline passes.
std::uint32_t AckTimeoutMs(Deadline deadline);

}  // namespace kvm
