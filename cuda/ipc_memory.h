// GPU memory that somebody allocated with cudaMalloc, shared as a cudaIpcMemHandle (cuda_ipc).
//
// A handle names a whole allocation; a segment is a range of it. Opened mappings are shared within the
// process and closed with their last user. A handle of this process's own isn't opened: CUDA refuses that.
#pragma once

#include "cuda/device_memory.h"

namespace kvm {

// Exports ranges of memory that the caller keeps allocated. Errors as MemoryBackend::Register.
[[nodiscard]] Result<std::unique_ptr<CudaLocalMemory>> RegisterIpc(const std::shared_ptr<const CudaDevice>& device,
                                                                   std::span<const DeviceRange> ranges);

// Maps a peer's range. CUDA can't map it read-only; detail says so.
// kInvalidArgument: not a handle, or the range leaves the allocation.
[[nodiscard]] Result<PeerSegment> MapIpc(const std::shared_ptr<const CudaDevice>& device, const SegmentHandle& segment);

}  // namespace kvm
