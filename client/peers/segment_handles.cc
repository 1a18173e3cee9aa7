#include "client/peers/segment_handles.h"

#include <fcntl.h>

#include <cstring>

namespace kvm {

namespace {

// `descriptor`: of the segment at this place in the list of descriptors.
template <class Descriptor>
Result<std::vector<SegmentHandle>> MakeHandles(const kvmwire::RegionDescriptor& wire, std::size_t fds, Descriptor descriptor) {
  std::vector<SegmentHandle> segments;
  for (int i = 0; i < wire.segments_size(); ++i) {
    SegmentHandle handle;
    handle.size_bytes = wire.segments(i).size_bytes();
    handle.handle = wire.segments(i).handle();
    handle.handle_offset = wire.segments(i).handle_offset();
    handle.allocation = wire.segments(i).allocation();
    handle.allocation_bytes = wire.segments(i).allocation_bytes();
    if (handle.handle.empty()) {
      const std::size_t at = static_cast<std::size_t>(i) + 1;
      if (at >= fds) return MakeError(Errc::kProtocol, "region announced without its segments");
      handle.fd = descriptor(at);
      if (!handle.fd) return SystemError("duplicating a region's descriptor");
    }
    segments.push_back(std::move(handle));
  }
  return segments;
}

}  // namespace

Result<std::vector<SegmentHandle>> HandlesOf(const kvmwire::RegionDescriptor& wire, const Fds& fds) {
  return MakeHandles(wire, fds.size(), [&](std::size_t at) { return UniqueFd(::fcntl(fds[at].get(), F_DUPFD_CLOEXEC, 0)); });
}

Result<std::vector<SegmentHandle>> TakeHandles(const kvmwire::RegionDescriptor& wire, Fds& fds) {
  return MakeHandles(wire, fds.size(), [&](std::size_t at) { return std::move(fds[at]); });
}

PeerOrigin OriginOf(const kvmwire::RegionDescriptor& wire) {
  PeerOrigin origin;
  origin.kind = static_cast<layout::HandleKind>(wire.handle_kind());
  if (wire.device_uuid().size() == origin.device.size()) std::memcpy(origin.device.data(), wire.device_uuid().data(), origin.device.size());
  return origin;
}

}  // namespace kvm
