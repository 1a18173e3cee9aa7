#include "cuda/memory/vmm_mapping.h"

#include <fcntl.h>

#include <utility>

namespace kvm {
namespace {

CUmemAllocationProp Properties(int ordinal) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = ordinal;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  return properties;
}

Status Check(CUresult error, const std::string& what, bool* done = nullptr) {
  if (error != CUDA_SUCCESS) return CudaError(error, what);
  if (done != nullptr) *done = true;
  return {};
}

// Uses a separate stream, so that it does not wait for other work of the GPU.
cudaError_t Zero(std::byte* data, std::uint64_t bytes) {
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaMemsetAsync(data, 0, bytes, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (stream != nullptr) static_cast<void>(cudaStreamDestroy(stream));
  return error;
}

}  // namespace

VmmMapping::~VmmMapping() {
  const DeviceGuard guard(*device_);
  const Driver& driver = device_->driver();
  if (mapped_) static_cast<void>(driver.MemUnmap(address_, mapped_bytes_));
  if (address_ != 0) static_cast<void>(driver.MemAddressFree(address_, mapped_bytes_));
  if (has_handle_) static_cast<void>(driver.MemRelease(handle_));
}

Result<std::shared_ptr<VmmMapping>> VmmMapping::Make(const std::shared_ptr<const CudaDevice>& device, std::uint64_t bytes) {
  auto mapping = std::make_shared<VmmMapping>(device);
  Status made = mapping->Create(bytes);
  if (made) made = mapping->Map();
  if (!made) return made.error();
  if (const CUresult error = mapping->Allow(CU_MEM_ACCESS_FLAGS_PROT_READWRITE); error != CUDA_SUCCESS)
    return CudaError(error, "cuMemSetAccess");
  if (const cudaError_t error = Zero(mapping->data(), bytes); error != cudaSuccess) return CudaError(error, "zeroing new memory");
  return mapping;
}

Status VmmMapping::Create(std::uint64_t bytes) {
  const CUmemAllocationProp properties = Properties(device_->ordinal());
  if (Status rounded = RoundUp(properties, bytes); !rounded) return rounded;
  return Check(device_->driver().MemCreate(&handle_, mapped_bytes_, &properties, 0),
               "cuMemCreate of " + std::to_string(mapped_bytes_) + " bytes", &has_handle_);
}

Status VmmMapping::Import(int fd, std::uint64_t bytes) {
  const Driver& driver = device_->driver();
  void* os_handle = reinterpret_cast<void*>(static_cast<std::uintptr_t>(fd));
  if (Status imported = Check(driver.MemImportFromShareableHandle(&handle_, os_handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                              "cuMemImportFromShareableHandle", &has_handle_);
      !imported) {
    return imported;
  }
  CUmemAllocationProp properties{};
  if (Status known = Check(driver.MemGetAllocationPropertiesFromHandle(&properties, handle_), "cuMemGetAllocationPropertiesFromHandle");
      !known) {
    return known;
  }
  return RoundUp(properties, bytes);
}

Status VmmMapping::Map() {
  const Driver& driver = device_->driver();
  if (Status reserved = Check(driver.MemAddressReserve(&address_, mapped_bytes_, 0, 0, 0), "cuMemAddressReserve"); !reserved)
    return reserved;
  return Check(driver.MemMap(address_, mapped_bytes_, 0, handle_, 0), "cuMemMap of " + std::to_string(mapped_bytes_) + " bytes", &mapped_);
}

CUresult VmmMapping::Allow(CUmemAccess_flags access) const {
  CUmemAccessDesc description{};
  description.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  description.location.id = device_->ordinal();
  description.flags = access;
  return device_->driver().MemSetAccess(address_, mapped_bytes_, &description, 1);
}

Result<UniqueFd> VmmMapping::Export() const {
  int fd = -1;
  const CUresult error = device_->driver().MemExportToShareableHandle(&fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
  if (error != CUDA_SUCCESS) return CudaError(error, "cuMemExportToShareableHandle");
  // Programs that this process starts must not inherit the descriptor.
  static_cast<void>(::fcntl(fd, F_SETFD, FD_CLOEXEC));
  return UniqueFd(fd);
}

Status VmmMapping::RoundUp(const CUmemAllocationProp& properties, std::uint64_t bytes) {
  std::size_t granularity = 0;
  const CUresult error = device_->driver().MemGetAllocationGranularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  if (error != CUDA_SUCCESS) return CudaError(error, "cuMemGetAllocationGranularity");
  if (bytes == 0 || bytes > UINT64_MAX - granularity)
    return MakeError(Errc::kInvalidArgument, "segment of " + std::to_string(bytes) + " bytes");
  mapped_bytes_ = (bytes + granularity - 1) / granularity * granularity;
  return {};
}

}  // namespace kvm
