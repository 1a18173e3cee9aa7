// The CUDA driver's entry points and its errors.
//
// The binary does not link libcuda: the CUDA runtime is linked statically and finds the driver at
// its first call. So the same binary starts on a machine without a driver, and reports that there
// is none. Immutable once loaded; thread-safe.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string>

#include "kvm/error.h"

namespace kvm {

struct Driver {
  decltype(&::cuDeviceGet) DeviceGet;
  decltype(&::cuDeviceGetUuid) DeviceGetUuid;
  decltype(&::cuDeviceGetAttribute) DeviceGetAttribute;
  decltype(&::cuDevicePrimaryCtxRetain) DevicePrimaryCtxRetain;
  decltype(&::cuDevicePrimaryCtxRelease) DevicePrimaryCtxRelease;
  decltype(&::cuCtxPushCurrent) CtxPushCurrent;
  decltype(&::cuCtxPopCurrent) CtxPopCurrent;
  decltype(&::cuMemCreate) MemCreate;
  decltype(&::cuMemRelease) MemRelease;
  decltype(&::cuMemExportToShareableHandle) MemExportToShareableHandle;
  decltype(&::cuMemImportFromShareableHandle) MemImportFromShareableHandle;
  decltype(&::cuMemGetAllocationGranularity) MemGetAllocationGranularity;
  decltype(&::cuMemGetAllocationPropertiesFromHandle) MemGetAllocationPropertiesFromHandle;
  decltype(&::cuMemAddressReserve) MemAddressReserve;
  decltype(&::cuMemAddressFree) MemAddressFree;
  decltype(&::cuMemMap) MemMap;
  decltype(&::cuMemUnmap) MemUnmap;
  decltype(&::cuMemSetAccess) MemSetAccess;
  decltype(&::cuMemGetAddressRange) MemGetAddressRange;
  decltype(&::cuPointerGetAttribute) PointerGetAttribute;
  decltype(&::cuGetErrorName) GetErrorName;
  decltype(&::cuGetErrorString) GetErrorString;
};

// kUnsupported: no driver, one too old for this build, or no GPU; the message says which.
[[nodiscard]] Result<const Driver*> LoadDriver();

// `what` names the call and its object. The runtime's sticky last error is cleared.
Error CudaError(cudaError_t error, const std::string& what);
Error CudaError(CUresult error, const std::string& what);

inline Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return CudaError(error, what);
}

}  // namespace kvm
