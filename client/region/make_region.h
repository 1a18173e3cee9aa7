// Makes the regions of a client: of new memory, of memory that the caller has, or of a dead
// process's memory. Registrar (registrar.h) registers a new region with kvmd afterwards; an adopted
// one is registered already.
#pragma once

#include <memory>
#include <span>

#include "client/peers/device_set.h"
#include "client/region/granted_memory.h"
#include "client/region/region_impl.h"

namespace kvm {

// Allocates the region's memory on a device of the client. `grant`: the function that asks kvmd for
// memory.
[[nodiscard]] Result<std::shared_ptr<Region::Impl>> MakeAllocated(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                                  std::size_t device, const GrantMemory& grant);

// The same; if memory is short, asks kvmd to free regions of dead workers on the device, and tries
// again.
[[nodiscard]] Result<std::shared_ptr<Region::Impl>> AllocateInPlaceOfTheDead(Link& link, const Model& model, const RegionOptions& options,
                                                                             const DeviceSet& devices, std::size_t device,
                                                                             Deadline deadline);

// Makes a region of memory that the caller has.
[[nodiscard]] Result<std::shared_ptr<Region::Impl>> MakeRegistered(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                                   std::size_t device, std::span<const DeviceRange> segments,
                                                                   const GrantMemory& grant);

// Takes over a dead owner's region. `fds`: those of kvmd's reply, with the descriptor of the
// records at the end.
[[nodiscard]] Result<std::shared_ptr<Region::Impl>> MakeAdopted(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                                std::size_t device, const kvmwire::AdoptRegionReply& reply, Fds fds);

}  // namespace kvm
