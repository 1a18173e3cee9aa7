#include "cuda/device/cuda_device.h"

#include <cstring>

#include "cuda/devices.h"
#include "cuda/kernels/copy_kernels.h"

namespace kvm {

Result<DeviceUuid> UuidOf(const Driver& driver, int ordinal) {
  CUdevice device = -1;
  CUuuid raw{};
  CUresult error = driver.DeviceGet(&device, ordinal);
  if (error == CUDA_SUCCESS) error = driver.DeviceGetUuid(&raw, device);
  if (error != CUDA_SUCCESS) return CudaError(error, "UUID of GPU " + std::to_string(ordinal));
  DeviceUuid uuid;
  static_assert(sizeof(raw.bytes) == sizeof(uuid));
  std::memcpy(uuid.data(), raw.bytes, uuid.size());
  return uuid;
}

int OrdinalOf(const Driver& driver, const DeviceUuid& uuid) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) return -1;
  for (int ordinal = 0; ordinal < devices; ++ordinal) {
    if (const Result<DeviceUuid> found = UuidOf(driver, ordinal); found && *found == uuid) return ordinal;
  }
  return -1;
}

Result<std::shared_ptr<const CudaDevice>> CudaDevice::Open(const DeviceUuid& uuid) {
  const Result<const Driver*> driver = LoadDriver();
  if (!driver) return driver.error();
  std::shared_ptr<CudaDevice> device(new CudaDevice());
  device->driver_ = *driver;
  device->uuid_ = uuid;
  device->ordinal_ = OrdinalOf(**driver, uuid);
  if (device->ordinal_ < 0) return MakeError(Errc::kNotFound, FormatUuid(uuid) + " is not visible to this process");
  CUresult error = device->driver_->DeviceGet(&device->handle_, device->ordinal_);
  if (error == CUDA_SUCCESS) error = device->driver_->DevicePrimaryCtxRetain(&device->context_, device->handle_);
  if (error != CUDA_SUCCESS) {
    device->context_ = nullptr;
    return CudaError(error, "context on " + FormatUuid(uuid));
  }
  const DeviceGuard guard(*device);
  int sms = 0;
  cudaError_t failed = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device->ordinal_);
  if (failed == cudaSuccess) failed = PrepareCopyKernels(device->limits_.bulk_shared_bytes);
  if (failed != cudaSuccess) return CudaError(failed, "loading the copy kernels on " + FormatUuid(uuid));
  device->limits_.sm_count = static_cast<unsigned>(sms);
  return std::shared_ptr<const CudaDevice>(std::move(device));
}

CudaDevice::~CudaDevice() {
  if (context_ != nullptr) static_cast<void>(driver_->DevicePrimaryCtxRelease(handle_));
}

}  // namespace kvm
