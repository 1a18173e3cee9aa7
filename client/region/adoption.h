// Client::AdoptRegion: asks kvmd for a dead process's region and makes a Region of it.
#pragma once

#include "client/connection/link.h"
#include "client/peers/device_set.h"
#include "client/region/registrar.h"
#include "kvclient/client.h"

namespace kvm {

// `device`: index in `devices` of the device that has the region's memory. Repeats the request
// while kvmd answers kUnavailable, until the deadline.
[[nodiscard]] Result<AdoptedRegion> AdoptRegion(Link& link, Registrar& registrar, const DeviceSet& devices, std::size_t device,
                                                const Model& model, RegionOptions region, Deadline deadline);

}  // namespace kvm
