// VmmMapping: one allocation of cuMemCreate and its mapping for one device. This header includes
// CUDA.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "cuda/device/cuda_device.h"
#include "proto/base/unique_fd.h"

namespace kvm {

// The destructor frees what was made, also after a failure in the middle. Not thread-safe while it
// is being made; afterwards Export is thread-safe. The device's context must be current
// (DeviceGuard), except for the destructor.
class VmmMapping {
 public:
  explicit VmmMapping(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {}
  ~VmmMapping();
  VmmMapping(const VmmMapping&) = delete;
  VmmMapping& operator=(const VmmMapping&) = delete;

  // Makes new memory, mapped read-write and zeroed, since it may contain another process's data.
  // Waits for the zeroing only.
  // kResourceExhausted, kInvalidArgument, kUnsupported, kSystem.
  [[nodiscard]] static Result<std::shared_ptr<VmmMapping>> Make(const std::shared_ptr<const CudaDevice>& device, std::uint64_t bytes);

  [[nodiscard]] Status Create(std::uint64_t bytes);
  [[nodiscard]] Status Import(int fd, std::uint64_t bytes);  // all `bytes` of it
  [[nodiscard]] Status Map();
  CUresult Allow(CUmemAccess_flags access) const;

  // A descriptor that keeps the memory alive; each call makes a new one.
  [[nodiscard]] Result<UniqueFd> Export() const;
  std::byte* data() const { return reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(address_)); }
  std::uint64_t bytes() const { return mapped_bytes_; }  // whole pages
  const CudaDevice& device() const { return *device_; }

 private:
  Status RoundUp(const CUmemAllocationProp& properties, std::uint64_t bytes);

  const std::shared_ptr<const CudaDevice> device_;
  CUmemGenericAllocationHandle handle_ = 0;
  CUdeviceptr address_ = 0;
  std::size_t mapped_bytes_ = 0;
  bool has_handle_ = false, mapped_ = false;
};

}  // namespace kvm
