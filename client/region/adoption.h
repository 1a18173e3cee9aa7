// Asks kvmd for a dead process's region and goes on with it (Client::AdoptRegion).
#pragma once

#include "client/connection/link.h"
#include "client/peers/device_set.h"
#include "client/region/registrar.h"
#include "kvclient/client.h"

namespace kvm {

// `device`: of `devices`, that of the region's memory. Asks again while kvmd says kUnavailable,
// until the deadline.
[[nodiscard]] Result<AdoptedRegion> AdoptRegion(Link& link, Registrar& registrar, const DeviceSet& devices, std::size_t device,
                                                const Model& model, RegionOptions region, Deadline deadline);

}  // namespace kvm
