#include "kvm/memory_checksum.h"

#include <limits>
#include <string>

#include "cuda/devices.h"
#include "cuda/host/checksum.h"

namespace kvm {

Result<std::vector<std::uint64_t>> ChecksumMemory(const void* address, std::uint64_t size_bytes, std::uint64_t piece_bytes,
                                                  const DeviceUuid& device) {
  const std::uint64_t whole = piece_bytes == 0 ? 0 : size_bytes / piece_bytes;
  if (piece_bytes == 0 || whole >= std::numeric_limits<std::uint32_t>::max()) {
    return MakeError(Errc::kInvalidArgument, "checksum: pieces of " + std::to_string(piece_bytes) + " bytes");
  }
  // The whole pieces are blocks of one geometry, and the rest is one block of another geometry.
  std::vector<std::uint64_t> sums;
  const auto* base = static_cast<const std::byte*>(address);
  const auto add = [&](const std::byte* from, std::uint64_t bytes, std::uint32_t count) -> Status {
    if (bytes == 0 || count == 0) return {};
    const Geometry geometry = Geometry::Contiguous(count, bytes);
    if (device != kHostMemory) {
      Result<std::vector<std::uint64_t>> on_gpu = ChecksumGpuMemory(device, from, geometry);
      if (!on_gpu) return on_gpu.error();
      sums.insert(sums.end(), on_gpu->begin(), on_gpu->end());
      return {};
    }
    for (std::uint32_t piece = 0; piece < count; ++piece) sums.push_back(ChecksumBlock(geometry, {&from, 1}, piece));
    return {};
  };
  if (Status status = add(base, piece_bytes, static_cast<std::uint32_t>(whole)); !status) return status.error();
  if (Status status = add(base + whole * piece_bytes, size_bytes - whole * piece_bytes, 1); !status) return status.error();
  return sums;
}

}  // namespace kvm
