#include "client/region/region_options.h"

#include <algorithm>
#include <string>
#include <vector>

#include "proto/wire/protocol_limits.h"
#include "proto/wire/region_descriptor.h"

namespace kvm {
namespace {

// The sizes of the smallest segments that hold `geometry`; Validate refuses wrong geometries later.
std::vector<std::uint64_t> NeededBytes(const Geometry& geometry) {
  std::vector<std::uint64_t> bytes;
  for (const GeometryPart& part : geometry.parts) {
    if (part.segment >= kMaxSegmentsByHandle || geometry.block_count == 0 || part.count == 0) continue;
    if (bytes.size() <= part.segment) bytes.resize(part.segment + 1);
    std::uint64_t end = 0, product = 0;
    const bool overflow = __builtin_mul_overflow(part.block_stride, std::uint64_t{geometry.block_count} - 1, &end) ||
                          __builtin_mul_overflow(part.repeat_stride, std::uint64_t{part.count} - 1, &product) ||
                          __builtin_add_overflow(end, product, &end) || __builtin_add_overflow(end, part.offset, &end) ||
                          __builtin_add_overflow(end, part.chunk_bytes, &end);
    if (!overflow) bytes[part.segment] = std::max(bytes[part.segment], end);
  }
  return bytes;
}

}  // namespace

Status CheckOptions(const RegionOptions& options, std::size_t max_segments) {
  if (Status named = CheckRegionName(options.name); !named) return named;
  if (Status valid = options.shard.Validate(); !valid) return valid;
  if (options.segment_bytes.size() > max_segments) {
    return MakeError(Errc::kBadGeometry, "geometry: " + std::to_string(options.segment_bytes.size()) + " segments, the limit is " +
                                             std::to_string(max_segments));
  }
  return options.geometry.Validate(options.segment_bytes);
}

Status Complete(RegionOptions& options) {
  if (options.segment_bytes.empty()) options.segment_bytes = NeededBytes(options.geometry);
  return CheckOptions(options, kMaxSegments);
}

kvmwire::RegionDescriptor ExpectedDescriptor(const Model& model, const RegionOptions& options) {
  kvmwire::RegionDescriptor out;
  out.set_name(options.name);
  out.set_fingerprint(model.fingerprint.bytes.data(), model.fingerprint.bytes.size());
  for (const std::uint16_t part :
       {options.shard.tp_rank, options.shard.tp_size, options.shard.pp_rank, options.shard.pp_size, options.shard.kv_group}) {
    out.add_shard(part);
  }
  if (options.device != kHostMemory) out.set_device_uuid(options.device.data(), options.device.size());
  for (const std::uint64_t bytes : options.segment_bytes) out.add_segments()->set_size_bytes(bytes);
  SetGeometry(options.geometry, out);
  return out;
}

}  // namespace kvm
