// OffloadSource: the offloader's view of a region whose blocks it copies to the host cache: its
// memory, and its row in kvmd's registry.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "client/peers/peers.h"
#include "cuda/memory_backend.h"

namespace kvm {

// How kvmd's registry names a region.
struct RegionRow {
  std::uint32_t row = 0, region_epoch = 0;
};

// Thread-safe. Memory and mapping stay as they are while the source lives.
class OffloadSource {
 public:
  // Empty if the region is not registered with kvmd now, or closed.
  virtual std::optional<RegionRow> OpenRow() const = 0;
  virtual std::uint64_t BlockBytes() const noexcept = 0;
  virtual std::size_t Device() const noexcept = 0;  // of the client's DeviceSet
  virtual MemoryBackend& Backend() const noexcept = 0;
  // The source's own memory and generations, as an import reads them.
  virtual const PeerMapping& Mapping() const noexcept = 0;

 protected:
  ~OffloadSource() = default;
};

}  // namespace kvm
