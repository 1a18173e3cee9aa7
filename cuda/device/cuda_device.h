// CudaDevice: one GPU of this process: its identity and its primary context. DeviceGuard makes that
// context current.
//
// A device is opened by UUID. Contexts are pushed and popped, never set: to restore the caller's
// device with cudaSetDevice would create a context on that device if the caller has never used it.
// Thread-safe; immutable after Open.
#pragma once

#include <memory>
#include <string>

#include "cuda/device/cuda_driver.h"
#include "cuda/memory_backend.h"
#include "cuda/plan/copy_policy.h"

namespace kvm {

class CudaDevice {
 public:
  // Retains the primary context (creates it if need be) and loads the copy kernels.
  // kNotFound: no visible GPU has that UUID. kUnsupported: no driver, or no kernel image for this
  // GPU.
  [[nodiscard]] static Result<std::shared_ptr<const CudaDevice>> Open(const DeviceUuid& uuid);
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  const Driver& driver() const noexcept { return *driver_; }
  int ordinal() const noexcept { return ordinal_; }
  CUcontext context() const noexcept { return context_; }
  const DeviceUuid& uuid() const noexcept { return uuid_; }
  const CopyLimits& limits() const noexcept { return limits_; }

 private:
  CudaDevice() = default;

  const Driver* driver_ = nullptr;
  int ordinal_ = -1;
  CUdevice handle_ = -1;
  CUcontext context_ = nullptr;
  DeviceUuid uuid_{};
  CopyLimits limits_;
};

// Makes the device's context current on this thread for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(const CudaDevice& device) noexcept
      : driver_(device.driver()), pushed_(driver_.CtxPushCurrent(device.context()) == CUDA_SUCCESS) {}
  ~DeviceGuard() {
    CUcontext popped = nullptr;
    if (pushed_) static_cast<void>(driver_.CtxPopCurrent(&popped));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  const Driver& driver_;
  const bool pushed_;
};

// UUID of a visible GPU or MIG instance, by its ordinal in this process.
[[nodiscard]] Result<DeviceUuid> UuidOf(const Driver& driver, int ordinal);
// -1 if no visible GPU has it.
int OrdinalOf(const Driver& driver, const DeviceUuid& uuid);

}  // namespace kvm
