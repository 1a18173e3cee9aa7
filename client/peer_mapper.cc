#include "client/peer_mapper.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "client/segment_handles.h"
#include "proto/fault_point.h"
#include "proto/region_descriptor.h"

namespace kvm {

void PeerMapper::Announce(std::uint64_t connection, kvmwire::RegionAnnounce announce, Fds fds) {
  // std::function wants to be copied: hence shared.
  auto shared_fds = std::make_shared<const Fds>(std::move(fds));
  thread_.Post([this, connection, announce = std::move(announce), fds = std::move(shared_fds)] {
    std::vector<UnmappedRegion> problems;
    Result<std::shared_ptr<PeerMapping>> mapping = Map(announce, *fds, problems);
    if (!mapping) problems.push_back({announce.descriptor_().name(), {}, mapping.error()});
    for (const UnmappedRegion& problem : problems) {
      if (problem.reason.code == Errc::kUnavailable) retry_.store(true);
    }
    {
      std::lock_guard lock(mutex_);
      const RowKey key{announce.region(), announce.region_epoch()};
      if (problems.empty()) {
        unmapped_.erase(key);
      } else {
        unmapped_[key] = std::move(problems);
      }
    }
    if (mapping) peers_.Add(connection, announce.region(), announce.region_epoch(), *mapping);
  });
}

void PeerMapper::Withdraw(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch, std::function<void()> released) {
  thread_.Post([this, connection, row, region_epoch, released = std::move(released)]() mutable {
    {
      std::lock_guard lock(mutex_);
      unmapped_.erase({row, region_epoch});
    }
    peers_.Remove(connection, row, region_epoch, std::move(released));
  });
}

std::vector<UnmappedRegion> PeerMapper::Unmapped() const {
  std::vector<UnmappedRegion> out;
  std::lock_guard lock(mutex_);
  for (const auto& [row, problems] : unmapped_) out.insert(out.end(), problems.begin(), problems.end());
  return out;
}

Result<std::shared_ptr<PeerMapping>> PeerMapper::Map(const kvmwire::RegionAnnounce& announce, const Fds& fds,
                                                     std::vector<UnmappedRegion>& problems) {
  if (fds.empty()) return MakeError(Errc::kProtocol, "region announced without its generation table");
  const std::size_t devices = devices_.size();
  PeerMapping::Parts parts;
  parts.name = announce.descriptor_().name();
  parts.identity = FileIdOf(fds[0].get());
  if (auto known = peers_.FindAgain(announce.region(), announce.region_epoch(), parts.name, parts.identity);
      known && (known->own || !announce.has_payload() || (known->devices == devices && known->payload()))) {
    return known;
  }
  if (peers_.mapped_regions() >= max_regions_) {
    return MakeError(Errc::kResourceExhausted,
                     std::to_string(max_regions_) + " regions are mapped already (ClientOptions::max_mapped_regions)");
  }
  const kvmwire::RegionDescriptor& wire = announce.descriptor_();
  parts.kept = announce.host_cache();
  parts.geometry = GeometryOf(wire);
  std::vector<std::uint64_t> segment_bytes;
  for (const kvmwire::Segment& segment : wire.segments()) segment_bytes.push_back(segment.size_bytes());
  if (Status valid = parts.geometry.Validate(segment_bytes); !valid) return valid.error();

  Result<PeerGenerations> generations = MapGenerations(fds[0].get(), parts.geometry.block_count, HugePages::kTry);
  if (!generations) return generations.error();
  parts.generations = std::move(*generations);

  if (announce.has_payload()) {
    Result<std::shared_ptr<PeerPayload>> payload = MapPayload(wire, fds, devices, problems);
    if (!payload) return payload.error();
    parts.payload = std::move(*payload);
  }
  // Where something is to be tried again, no device counts as considered, so that the next announcement maps anew.
  const bool again = std::any_of(problems.begin(), problems.end(), [](const auto& one) { return one.reason.code == Errc::kUnavailable; });
  parts.devices = again ? 0 : devices;
  // One registration serves all GPUs; if it fails, the CPU validates.
  for (std::size_t device = 1; device < devices && !parts.generations.attachment; ++device) {
    static_cast<void>(devices_[device].AttachGenerations(parts.generations));
  }
  KVM_FAULT_POINT(client_peer_mapped);
  return std::make_shared<PeerMapping>(std::move(parts));
}

Result<std::shared_ptr<PeerPayload>> PeerMapper::MapPayload(const kvmwire::RegionDescriptor& wire, const Fds& fds, std::size_t devices,
                                                            std::vector<UnmappedRegion>& problems) {
  const PeerOrigin origin = OriginOf(wire);
  auto payload = std::make_shared<PeerPayload>();
  for (std::size_t device = 0; device < devices; ++device) {
    MemoryBackend& backend = devices_[device];
    if (!backend.Maps(origin.kind)) {
      // A process without a GPU has no use for GPU memory; one with a GPU doesn't import to the host.
      if (device != DeviceSet::kHost || devices == 1) {
        problems.push_back({wire.name(), backend.device_uuid(), MakeError(Errc::kUnsupported, "GPU memory, and this process uses no GPU")});
      }
      continue;
    }
    Result<std::vector<SegmentHandle>> segments = HandlesOf(wire, fds);
    if (!segments) return segments.error();
    Result<std::unique_ptr<PeerMemory>> mapped = backend.Map(std::move(*segments), origin);
    if (mapped) {
      payload->memories[device] = std::move(*mapped);
    } else {
      problems.push_back({wire.name(), backend.device_uuid(), mapped.error()});
    }
  }
  return payload;
}

}  // namespace kvm
