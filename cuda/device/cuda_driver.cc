#include "cuda/device/cuda_driver.h"

namespace kvm {
namespace {

Errc CodeOf(CUresult error) {
  switch (error) {
    case CUDA_ERROR_OUT_OF_MEMORY:
    case CUDA_ERROR_MAP_FAILED:
    case CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: return Errc::kResourceExhausted;
    case CUDA_ERROR_NOT_PERMITTED: return Errc::kPermissionDenied;
    case CUDA_ERROR_INVALID_VALUE:
    case CUDA_ERROR_INVALID_HANDLE:
    case CUDA_ERROR_NOT_MAPPED:
    case CUDA_ERROR_ALREADY_MAPPED: return Errc::kInvalidArgument;
    case CUDA_ERROR_NOT_SUPPORTED:
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_INVALID_DEVICE:
    case CUDA_ERROR_PEER_ACCESS_UNSUPPORTED:
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: return Errc::kUnsupported;
    default: return Errc::kSystem;
  }
}

template <class Function>
bool Find(const char* symbol, Function& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult outcome = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  constexpr unsigned kVersion = 12000;  // the interface that these symbols have since CUDA 12.0
  const cudaError_t error = cudaGetDriverEntryPointByVersion(symbol, &found, kVersion, cudaEnableDefault, &outcome);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(symbol, &found, cudaEnableDefault, &outcome);
#endif
  function = reinterpret_cast<Function>(found);
  return error == cudaSuccess && outcome == cudaDriverEntryPointSuccess && found != nullptr;
}

Result<Driver> Load() {
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    const std::string name = cudaGetErrorName(error);
    if (error == cudaErrorInsufficientDriver) {
      return MakeError(Errc::kUnsupported, "no NVIDIA driver here, or one too old for CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
                                               std::to_string(CUDART_VERSION / 10 % 100) + " (" + name + ")");
    }
    if (error == cudaErrorNoDevice) {
      return MakeError(Errc::kUnsupported, "no GPU is visible to this process (" + name + "; CUDA_VISIBLE_DEVICES, container)");
    }
    return MakeError(Errc::kUnsupported, "CUDA does not start: " + name + " (" + cudaGetErrorString(error) + ")");
  }
  if (devices == 0) return MakeError(Errc::kUnsupported, "no GPU is visible to this process");
  Driver driver{};
  const bool complete =
      Find("cuDeviceGet", driver.DeviceGet) && Find("cuDeviceGetUuid", driver.DeviceGetUuid) &&
      Find("cuDeviceGetAttribute", driver.DeviceGetAttribute) && Find("cuDevicePrimaryCtxRetain", driver.DevicePrimaryCtxRetain) &&
      Find("cuDevicePrimaryCtxRelease", driver.DevicePrimaryCtxRelease) && Find("cuCtxPushCurrent", driver.CtxPushCurrent) &&
      Find("cuCtxPopCurrent", driver.CtxPopCurrent) && Find("cuMemCreate", driver.MemCreate) && Find("cuMemRelease", driver.MemRelease) &&
      Find("cuMemExportToShareableHandle", driver.MemExportToShareableHandle) &&
      Find("cuMemImportFromShareableHandle", driver.MemImportFromShareableHandle) &&
      Find("cuMemGetAllocationGranularity", driver.MemGetAllocationGranularity) &&
      Find("cuMemGetAllocationPropertiesFromHandle", driver.MemGetAllocationPropertiesFromHandle) &&
      Find("cuMemAddressReserve", driver.MemAddressReserve) && Find("cuMemAddressFree", driver.MemAddressFree) &&
      Find("cuMemMap", driver.MemMap) && Find("cuMemUnmap", driver.MemUnmap) && Find("cuMemSetAccess", driver.MemSetAccess) &&
      Find("cuMemGetAddressRange", driver.MemGetAddressRange) && Find("cuPointerGetAttribute", driver.PointerGetAttribute) &&
      Find("cuGetErrorName", driver.GetErrorName) && Find("cuGetErrorString", driver.GetErrorString);
  if (!complete) return MakeError(Errc::kUnsupported, "the NVIDIA driver is too old: it lacks virtual memory management");
  return driver;
}

const Result<Driver>& Loaded() {
  static const Result<Driver> driver = Load();
  return driver;
}

}  // namespace

Result<const Driver*> LoadDriver() {
  const Result<Driver>& driver = Loaded();
  if (!driver) return driver.error();
  return &*driver;
}

Error CudaError(cudaError_t error, const std::string& what) {
  static_cast<void>(cudaGetLastError());
  // The runtime's codes below 1000 are the driver's.
  Errc code = error == cudaErrorMemoryAllocation ? Errc::kResourceExhausted : CodeOf(static_cast<CUresult>(error));
  if (error == cudaErrorInvalidValue) code = Errc::kInvalidArgument;
  if (error == cudaErrorInsufficientDriver || error == cudaErrorDevicesUnavailable) code = Errc::kUnsupported;
  return MakeError(code, what + ": " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) + ")");
}

Error CudaError(CUresult error, const std::string& what) {
  const char *name = "unknown error", *text = "";
  if (const Result<Driver>& driver = Loaded(); driver) {
    static_cast<void>(driver->GetErrorName(error, &name));
    static_cast<void>(driver->GetErrorString(error, &text));
  }
  return MakeError(CodeOf(error), what + ": " + (name ? name : "unknown error") + " (" + (text ? text : "") + ")");
}

}  // namespace kvm
