// Measures CUDA's own copies between buffers of this process: the baseline to which imports are
// compared.
#pragma once

#include <cstdint>
#include <vector>

#include "kvm/device.h"

namespace kvm::bench {

enum class BaselineCall : std::uint8_t {
  kContiguous,  // one cudaMemcpyPeerAsync of all bytes; from host memory, one cudaMemcpyAsync
  kEachChunk,   // one cudaMemcpyAsync for each chunk
  kBatch,       // one cudaMemcpyBatchAsync of all chunks; CUDA 13 and later
};

struct CopyBaseline {
  BaselineCall call = BaselineCall::kContiguous;
  DeviceUuid importer{};  // reads
  DeviceUuid owner{};     // is read; may be the same GPU; kHostMemory: pinned host memory
  std::uint64_t bytes = 0;
  // Divides `bytes`; chunks lie in a random order on both sides
  std::uint64_t chunk_bytes = 64 << 10;
  unsigned rounds = 15;
};

// Seconds of each round, from the call until the host knows that the copy is complete. Allocates
// `bytes` on both sides, copies once more to warm up, and frees them.
// kInvalidArgument: sizes. kNotFound: no such GPU. kResourceExhausted: no memory. kUnsupported: no
// driver, no peer access between the two, or a toolkit without that call. kSystem.
[[nodiscard]] Result<std::vector<double>> MeasureCopy(const CopyBaseline& baseline);

}  // namespace kvm::bench
