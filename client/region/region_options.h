// Completes and checks RegionOptions, and converts them for kvmd.
#pragma once

#include <cstddef>

#include "kvclient/region.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

// Whether a region of so many segments can be made.
[[nodiscard]] Status CheckOptions(const RegionOptions& options, std::size_t max_segments);

// Fills in what AllocateRegion's options may leave out, and checks them.
[[nodiscard]] Status Complete(RegionOptions& options);

// The descriptor of a region with these options, without kind and handles.
kvmwire::RegionDescriptor ExpectedDescriptor(const Model& model, const RegionOptions& options);

}  // namespace kvm
