#include "cuda/vmm_memory.h"

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

// One allocation and its mapping. Gives back whatever it has got so far.
class VmmMapping {
 public:
  explicit VmmMapping(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {}
  ~VmmMapping() {
    const DeviceGuard guard(*device_);
    const Driver& driver = device_->driver();
    if (mapped_) static_cast<void>(driver.MemUnmap(address_, mapped_bytes_));
    if (address_ != 0) static_cast<void>(driver.MemAddressFree(address_, mapped_bytes_));
    if (has_handle_) static_cast<void>(driver.MemRelease(handle_));
  }
  VmmMapping(const VmmMapping&) = delete;
  VmmMapping& operator=(const VmmMapping&) = delete;

  Status Create(std::uint64_t bytes) {
    const CUmemAllocationProp properties = Properties(device_->ordinal());
    if (Status rounded = RoundUp(properties, bytes); !rounded) return rounded;
    return Check(device_->driver().MemCreate(&handle_, mapped_bytes_, &properties, 0),
                 "cuMemCreate of " + std::to_string(mapped_bytes_) + " bytes", &has_handle_);
  }

  Status Import(int fd, std::uint64_t bytes) {
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

  Status Map() {
    const Driver& driver = device_->driver();
    if (Status reserved = Check(driver.MemAddressReserve(&address_, mapped_bytes_, 0, 0, 0), "cuMemAddressReserve"); !reserved)
      return reserved;
    return Check(driver.MemMap(address_, mapped_bytes_, 0, handle_, 0), "cuMemMap of " + std::to_string(mapped_bytes_) + " bytes",
                 &mapped_);
  }

  CUresult Allow(CUmemAccess_flags access) const {
    CUmemAccessDesc description{};
    description.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    description.location.id = device_->ordinal();
    description.flags = access;
    return device_->driver().MemSetAccess(address_, mapped_bytes_, &description, 1);
  }

  Result<UniqueFd> Export() const {
    int fd = -1;
    const CUresult error = device_->driver().MemExportToShareableHandle(&fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    if (error != CUDA_SUCCESS) return CudaError(error, "cuMemExportToShareableHandle");
    return UniqueFd(fd);
  }

  std::byte* data() const { return reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(address_)); }

 private:
  static Status Check(CUresult error, const std::string& what, bool* done = nullptr) {
    if (error != CUDA_SUCCESS) return CudaError(error, what);
    if (done != nullptr) *done = true;
    return {};
  }

  Status RoundUp(const CUmemAllocationProp& properties, std::uint64_t bytes) {
    std::size_t granularity = 0;
    const CUresult error = device_->driver().MemGetAllocationGranularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    if (error != CUDA_SUCCESS) return CudaError(error, "cuMemGetAllocationGranularity");
    if (bytes == 0 || bytes > UINT64_MAX - granularity)
      return MakeError(Errc::kInvalidArgument, "segment of " + std::to_string(bytes) + " bytes");
    mapped_bytes_ = (bytes + granularity - 1) / granularity * granularity;
    return {};
  }

  const std::shared_ptr<const CudaDevice> device_;
  CUmemGenericAllocationHandle handle_ = 0;
  CUdeviceptr address_ = 0;
  std::size_t mapped_bytes_ = 0;
  bool has_handle_ = false, mapped_ = false;
};

}  // namespace

Result<std::unique_ptr<CudaLocalMemory>> AllocateVmm(const std::shared_ptr<const CudaDevice>& device,
                                                     std::span<const std::uint64_t> segment_bytes) {
  const DeviceGuard guard(*device);
  auto memory = std::make_unique<CudaLocalMemory>(device, layout::HandleKind::kCudaVmmFd);
  for (const std::uint64_t bytes : segment_bytes) {
    auto mapping = std::make_shared<VmmMapping>(device);
    Status made = mapping->Create(bytes);
    if (made) made = mapping->Map();
    if (!made) return made.error();
    if (const CUresult error = mapping->Allow(CU_MEM_ACCESS_FLAGS_PROT_READWRITE); error != CUDA_SUCCESS)
      return CudaError(error, "cuMemSetAccess");
    // New memory may hold what a process before left there.
    if (const cudaError_t error = cudaMemset(mapping->data(), 0, bytes); error != cudaSuccess) return CudaError(error, "cudaMemset");
    Result<UniqueFd> fd = mapping->Export();
    if (!fd) return fd.error();
    SegmentHandle handle;
    handle.size_bytes = bytes;
    handle.fd = std::move(*fd);
    std::byte* data = mapping->data();
    memory->Add(std::move(handle), data, std::move(mapping));
  }
  if (const cudaError_t error = cudaDeviceSynchronize(); error != cudaSuccess) return CudaError(error, "zeroing a region");
  return memory;
}

Result<PeerSegment> MapVmm(const std::shared_ptr<const CudaDevice>& device, const SegmentHandle& segment) {
  const DeviceGuard guard(*device);
  auto mapping = std::make_shared<VmmMapping>(device);
  Status made = mapping->Import(segment.fd.get(), segment.size_bytes);
  if (made) made = mapping->Map();
  if (!made) return made.error();
  PeerSegment peer;
  const CUresult read_only = mapping->Allow(CU_MEM_ACCESS_FLAGS_PROT_READ);
  peer.read_only = read_only == CUDA_SUCCESS;
  if (!peer.read_only) {
    peer.detail = "mapped read-write: " + CudaError(read_only, "cuMemSetAccess for reading").message;
    if (const CUresult error = mapping->Allow(CU_MEM_ACCESS_FLAGS_PROT_READWRITE); error != CUDA_SUCCESS)
      return CudaError(error, "cuMemSetAccess");
  }
  peer.base = mapping->data();
  peer.owner = std::move(mapping);
  return peer;
}

}  // namespace kvm
