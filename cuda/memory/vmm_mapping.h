// One allocation of cuMemCreate and its mapping at one device. CUDA inside; for the files that make regions of it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "cuda/device/cuda_device.h"
#include "proto/base/unique_fd.h"

namespace kvm {

// Gives back whatever it has got so far. Not thread-safe while it is being made; afterwards Export is. The device's
// context must be current (DeviceGuard), except for destruction.
class VmmMapping {
 public:
  explicit VmmMapping(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {}
  ~VmmMapping();
  VmmMapping(const VmmMapping&) = delete;
  VmmMapping& operator=(const VmmMapping&) = delete;

  // New memory, mapped read-write and zeroed: it may hold what a process before left there. Waits for the zeroing alone.
  // kResourceExhausted, kInvalidArgument, kUnsupported, kSystem.
  [[nodiscard]] static Result<std::shared_ptr<VmmMapping>> Make(const std::shared_ptr<const CudaDevice>& device, std::uint64_t bytes);

  [[nodiscard]] Status Create(std::uint64_t bytes);
  [[nodiscard]] Status Import(int fd, std::uint64_t bytes);  // all `bytes` of it
  [[nodiscard]] Status Map();
  CUresult Allow(CUmemAccess_flags access) const;

  // A descriptor that keeps the memory alive; another one with each call.
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
