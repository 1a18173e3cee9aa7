#include "cuda/memory/vmm_memory.h"

#include <utility>

#include "cuda/memory/vmm_mapping.h"

namespace kvm {
namespace {

// Imports the whole allocation in which a segment lies, without access rights: CUDA refuses to map
// only the beginning of an imported allocation.
Result<std::shared_ptr<VmmMapping>> Import(const std::shared_ptr<const CudaDevice>& device, const SegmentHandle& segment) {
  if (segment.size_bytes == 0 || segment.handle_offset > segment.allocation_bytes ||
      segment.size_bytes > segment.allocation_bytes - segment.handle_offset) {
    return MakeError(Errc::kInvalidArgument, "bytes " + std::to_string(segment.handle_offset) + "+" + std::to_string(segment.size_bytes) +
                                                 " are no part of an allocation of " + std::to_string(segment.allocation_bytes));
  }
  auto mapping = std::make_shared<VmmMapping>(device);
  Status made = mapping->Import(segment.fd.get(), segment.allocation_bytes);
  if (made) made = mapping->Map();
  if (!made) return made.error();
  return mapping;
}

}  // namespace

Result<std::unique_ptr<CudaLocalMemory>> AllocateVmm(const std::shared_ptr<const CudaDevice>& device,
                                                     std::span<const std::uint64_t> segment_bytes) {
  const DeviceGuard guard(*device);
  auto memory = std::make_unique<CudaLocalMemory>(device, layout::HandleKind::kCudaVmmFd);
  for (const std::uint64_t bytes : segment_bytes) {
    Result<std::shared_ptr<VmmMapping>> mapping = VmmMapping::Make(device, bytes);
    if (!mapping) return mapping.error();
    Result<UniqueFd> fd = (*mapping)->Export();
    if (!fd) return fd.error();
    SegmentHandle handle;
    handle.size_bytes = handle.allocation_bytes = bytes;
    handle.fd = std::move(*fd);
    std::byte* data = (*mapping)->data();
    memory->Add(std::move(handle), data, std::move(*mapping));
  }
  return memory;
}

Result<std::unique_ptr<CudaLocalMemory>> TakeVmm(const std::shared_ptr<const CudaDevice>& device, std::vector<SegmentHandle> segments) {
  const DeviceGuard guard(*device);
  auto memory = std::make_unique<CudaLocalMemory>(device, layout::HandleKind::kCudaVmmFd);
  for (SegmentHandle& segment : segments) {
    Result<std::shared_ptr<VmmMapping>> mapping = Import(device, segment);
    if (!mapping) return mapping.error();
    if (const CUresult error = (*mapping)->Allow(CU_MEM_ACCESS_FLAGS_PROT_READWRITE); error != CUDA_SUCCESS)
      return CudaError(error, "cuMemSetAccess");
    std::byte* data = (*mapping)->data() + segment.handle_offset;
    memory->Add(std::move(segment), data, std::move(*mapping));
  }
  return memory;
}

Result<PeerSegment> MapVmm(const std::shared_ptr<const CudaDevice>& device, const SegmentHandle& segment) {
  const DeviceGuard guard(*device);
  Result<std::shared_ptr<VmmMapping>> imported = Import(device, segment);
  if (!imported) return imported.error();
  VmmMapping& mapping = **imported;
  PeerSegment peer;
  const CUresult read_only = mapping.Allow(CU_MEM_ACCESS_FLAGS_PROT_READ);
  peer.read_only = read_only == CUDA_SUCCESS;
  if (!peer.read_only) {
    peer.detail = "mapped read-write: " + CudaError(read_only, "cuMemSetAccess for reading").message;
    if (const CUresult error = mapping.Allow(CU_MEM_ACCESS_FLAGS_PROT_READWRITE); error != CUDA_SUCCESS)
      return CudaError(error, "cuMemSetAccess");
  }
  peer.base = mapping.data() + segment.handle_offset;
  peer.owner = std::move(*imported);
  return peer;
}

}  // namespace kvm
