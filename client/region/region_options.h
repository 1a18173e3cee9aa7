// RegionOptions as a caller gives them: completed, checked, and as kvmd is told of them.
#pragma once

#include <cstddef>

#include "kvclient/region.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

// Whether a region of so many segments can be made.
[[nodiscard]] Status CheckOptions(const RegionOptions& options, std::size_t max_segments);

// Fills in what AllocateRegion's options may leave out, and checks them.
[[nodiscard]] Status Complete(RegionOptions& options);

// What a region of these options looks like, without kind and handles.
kvmwire::RegionDescriptor ExpectedDescriptor(const Model& model, const RegionOptions& options);

}  // namespace kvm
