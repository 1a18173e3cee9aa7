// Parsing of RegionDescriptor, shared by owner, kvmd and importer.
#pragma once

#include <string>

#include "kvm/error.h"
#include "kvm/geometry.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

// 1 to kMaxNameBytes bytes of printable ASCII without spaces. kInvalidArgument.
[[nodiscard]] Status CheckRegionName(const std::string& name);

// The model's fingerprint and the shard: the same for regions whose blocks have the same keys.
std::string ContentOf(const kvmwire::RegionDescriptor& descriptor);

// The result is not validated: call Geometry::Validate.
Geometry GeometryOf(const kvmwire::RegionDescriptor& descriptor);
void SetGeometry(const Geometry& geometry, kvmwire::RegionDescriptor& descriptor);

}  // namespace kvm
