// GPU memory that somebody allocated with cudaMalloc, shared as a cudaIpcMemHandle (cuda_ipc).
//
// A handle names a whole allocation; a segment is a range of it. Opened mappings are shared within the
// process and closed with their last user. A handle of this process's own isn't opened: CUDA refuses that.
// CUDA gives a new allocation the handle of a freed one (measured), and opening that handle while the old
// mapping lives gives the old memory: hence SegmentHandle::allocation, and a refusal while the two differ.
#pragma once

#include "cuda/memory/device_memory.h"

namespace kvm {

// Exports ranges of memory that the caller keeps allocated. Errors as MemoryBackend::Register.
[[nodiscard]] Result<std::unique_ptr<CudaLocalMemory>> RegisterIpc(const std::shared_ptr<const CudaDevice>& device,
                                                                   std::span<const DeviceRange> ranges);

// Maps a peer's range. CUDA can't map it read-only; detail says so.
// kInvalidArgument: not a handle, or the range leaves the allocation. kUnavailable: see above.
[[nodiscard]] Result<PeerSegment> MapIpc(const std::shared_ptr<const CudaDevice>& device, const SegmentHandle& segment);

}  // namespace kvm
