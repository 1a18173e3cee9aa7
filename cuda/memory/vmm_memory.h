// GPU memory made with cuMemCreate and shared as a file descriptor (cuda_vmm_fd).
//
// An open descriptor keeps the memory alive, in any process, with or without CUDA; so does a
// mapping.
#pragma once

#include "cuda/memory/device_memory.h"

namespace kvm {

// One allocation per size, mapped read-write for `device`. kResourceExhausted, kUnsupported,
// kSystem.
[[nodiscard]] Result<std::unique_ptr<CudaLocalMemory>> AllocateVmm(const std::shared_ptr<const CudaDevice>& device,
                                                                   std::span<const std::uint64_t> segment_bytes);

// Takes over existing allocations as this process's own memory, mapped read-write.
// kInvalidArgument, kUnsupported, kSystem.
[[nodiscard]] Result<std::unique_ptr<CudaLocalMemory>> TakeVmm(const std::shared_ptr<const CudaDevice>& device,
                                                               std::vector<SegmentHandle> segments);

// Maps a peer's allocation for `device` up to the segment's end, read-only where the driver allows
// that.
// kInvalidArgument: not a descriptor of such an allocation, or the allocation is smaller than the
// handle says. kUnsupported: no path to that GPU.
[[nodiscard]] Result<PeerSegment> MapVmm(const std::shared_ptr<const CudaDevice>& device, const SegmentHandle& segment);

}  // namespace kvm
