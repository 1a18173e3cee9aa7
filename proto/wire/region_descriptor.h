// Parsing of RegionDescriptor, shared by owner, kvmd and importer.
#pragma once

#include <string>

#include "kvm/error.h"
#include "kvm/geometry.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

// 1 to kMaxNameBytes bytes of printable ASCII without spaces. kInvalidArgument.
[[nodiscard]] Status CheckRegionName(const std::string& name);

// The result is not validated: call Geometry::Validate.
Geometry GeometryOf(const kvmwire::RegionDescriptor& descriptor);
void SetGeometry(const Geometry& geometry, kvmwire::RegionDescriptor& descriptor);

}  // namespace kvm
