// Makes the regions of a client: of memory that is allocated, that the caller has, or that a dead
// process has left. What is made is not known to kvmd yet (registrar.h), but for an adopted one.
#pragma once

#include <memory>
#include <span>

#include "client/peers/device_set.h"
#include "client/region/granted_memory.h"
#include "client/region/region_impl.h"

namespace kvm {

// Allocates the region's memory on a device of the client's. `grant`: what asks kvmd for memory.
[[nodiscard]] Result<std::shared_ptr<Region::Impl>> MakeAllocated(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                                  std::size_t device, const GrantMemory& grant);

// The same, and again if memory is short: what dead workers have left on the device goes first.
[[nodiscard]] Result<std::shared_ptr<Region::Impl>> AllocateInPlaceOfTheDead(Link& link, const Model& model, const RegionOptions& options,
                                                                             const DeviceSet& devices, std::size_t device,
                                                                             Deadline deadline);

// Makes a region of memory that the caller has.
[[nodiscard]] Result<std::shared_ptr<Region::Impl>> MakeRegistered(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                                   std::size_t device, std::span<const DeviceRange> segments,
                                                                   const GrantMemory& grant);

// Goes on with a dead owner's region. `fds`: of kvmd's reply; the records are consumed from them,
// too.
[[nodiscard]] Result<std::shared_ptr<Region::Impl>> MakeAdopted(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                                std::size_t device, const kvmwire::AdoptRegionReply& reply, Fds fds);

}  // namespace kvm
