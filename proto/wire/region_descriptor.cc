#include "proto/wire/region_descriptor.h"

#include <algorithm>

#include "proto/wire/protocol_limits.h"

namespace kvm {

Status CheckRegionName(const std::string& name) {
  if (name.empty() || name.size() > kMaxNameBytes) {
    return MakeError(Errc::kInvalidArgument,
                     "region: name has " + std::to_string(name.size()) + " bytes, 1.." + std::to_string(kMaxNameBytes) + " allowed");
  }
  const bool printable = std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && static_cast<unsigned char>(c) < 0x7f; });
  if (!printable) return MakeError(Errc::kInvalidArgument, "region: name has characters that are not printable ASCII");
  return {};
}

std::string ContentOf(const kvmwire::RegionDescriptor& descriptor) {
  std::string content = descriptor.fingerprint();
  for (const std::uint32_t number : descriptor.shard()) content += "," + std::to_string(number);
  return content;
}

Geometry GeometryOf(const kvmwire::RegionDescriptor& descriptor) {
  Geometry geometry;
  geometry.block_count = descriptor.block_count();
  for (const kvmwire::GeometryPart& part : descriptor.parts()) {
    geometry.parts.push_back({part.segment(), part.offset(), part.chunk_bytes(), part.block_stride(), part.count(), part.repeat_stride()});
  }
  return geometry;
}

void SetGeometry(const Geometry& geometry, kvmwire::RegionDescriptor& descriptor) {
  descriptor.set_block_count(geometry.block_count);
  for (const GeometryPart& part : geometry.parts) {
    kvmwire::GeometryPart& wire = *descriptor.add_parts();
    wire.set_segment(part.segment);
    wire.set_offset(part.offset);
    wire.set_chunk_bytes(part.chunk_bytes);
    wire.set_block_stride(part.block_stride);
    wire.set_count(part.count);
    wire.set_repeat_stride(part.repeat_stride);
  }
}

}  // namespace kvm
