// GPU memory that an engine allocated with cudaMalloc, shared as a cudaIpcMemHandle (cuda_ipc).
//
// A handle names a whole allocation; a segment is a range of it. Opened mappings are shared within
// the process and closed with their last user. A handle that this process exported is not opened,
// since CUDA refuses that. CUDA gives a new allocation the handle of a freed one (measured), and to
// open that handle while the old mapping lives would give the old memory. So
// SegmentHandle::allocation identifies the allocation, and MapIpc refuses a handle while another
// allocation is mapped under it.
#pragma once

#include "cuda/memory/device_memory.h"

namespace kvm {

// Exports ranges of memory that the caller keeps allocated. Errors: those of
// MemoryBackend::Register.
[[nodiscard]] Result<std::unique_ptr<CudaLocalMemory>> RegisterIpc(const std::shared_ptr<const CudaDevice>& device,
                                                                   std::span<const DeviceRange> ranges);

// Maps a peer's range. CUDA can't map it read-only; `detail` says so.
// kInvalidArgument: not a handle, or the range leaves the allocation. kUnavailable: see above.
[[nodiscard]] Result<PeerSegment> MapIpc(const std::shared_ptr<const CudaDevice>& device, const SegmentHandle& segment);

}  // namespace kvm
