#include "cuda/topology/topology.h"

#include <algorithm>
#include <utility>

#include "cuda/topology/copy_timer.h"
#include "cuda/topology/nvml.h"
#include "kvm/device.h"
#include "proto/base/fault_switch.h"

namespace kvm {
namespace {

std::string PciAddress(int ordinal) {
  char text[32] = {};
  return cudaDeviceGetPCIBusId(text, sizeof(text), ordinal) == cudaSuccess ? text : std::string();
}

int P2p(cudaDeviceP2PAttr attribute, int importer, int owner) {
  int value = 0;
  if (cudaDeviceGetP2PAttribute(&value, attribute, importer, owner) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  return value;
}

// NVLink has native atomics between GPUs and PCIe has not, so without NVML they tell the two apart.
LinkInfo Pair(const DeviceInfo& importer, const DeviceInfo& owner) {
  LinkInfo link;
  link.reachable = true;
  const bool apart = KVM_FAULT_SWITCH(gpu_no_peer_access);
  if (importer.ordinal == owner.ordinal && !apart) return link;
  if (apart || P2p(cudaDevP2PAttrAccessSupported, importer.ordinal, owner.ordinal) == 0) {
    link.reachable = false;
    link.note = "no peer access (IOMMU, different PCIe roots, or MIG)";
    return link;
  }
  const std::optional<bool> nvlink = NvmlPeersOverNvlink(importer.pci_address, owner.pci_address);
  const bool guessed = P2p(cudaDevP2PAttrNativeAtomicSupported, importer.ordinal, owner.ordinal) != 0;
  link.path = nvlink.value_or(guessed) ? MemoryPath::kNvlink : MemoryPath::kPciePeer;
  if (!nvlink) link.note = "without NVML: taken from the pair's support of atomics";
  if (link.path == MemoryPath::kNvlink) {
    link.nvlinks = std::min(NvmlActiveLinks(importer.pci_address).value_or(0), NvmlActiveLinks(owner.pci_address).value_or(0));
  }
  return link;
}

Result<double> MeasurePair(std::shared_ptr<const CudaDevice> importer, std::shared_ptr<const CudaDevice> owner) {
  constexpr std::uint64_t kBytes = std::uint64_t{128} << 20;
  constexpr unsigned kRounds = 7;
  Result<std::unique_ptr<CopyTimer>> timer = CopyTimer::Create(std::move(importer), std::move(owner), kBytes);
  if (!timer) return timer.error();
  Result<std::vector<double>> times = (*timer)->Time(kRounds);
  if (!times) return times.error();
  std::nth_element(times->begin(), times->begin() + kRounds / 2, times->end());
  return kBytes / ((*times)[kRounds / 2] * 1e9);
}

}  // namespace

std::string CudaToolkitVersion() { return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION / 10 % 100); }

Result<std::vector<DeviceInfo>> ListDevices() {
  const Result<const Driver*> driver = LoadDriver();
  if (!driver) return driver.error();
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) return CudaError(error, "cudaGetDeviceCount");
  std::vector<DeviceInfo> devices;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    cudaDeviceProp properties{};
    if (const cudaError_t error = cudaGetDeviceProperties(&properties, ordinal); error != cudaSuccess) {
      return CudaError(error, "cudaGetDeviceProperties of GPU " + std::to_string(ordinal));
    }
    const Result<DeviceUuid> uuid = UuidOf(**driver, ordinal);
    if (!uuid) return uuid.error();
    DeviceInfo info;
    info.uuid = *uuid;
    info.ordinal = ordinal;
    info.name = properties.name;
    info.pci_address = PciAddress(ordinal);
    info.memory_bytes = properties.totalGlobalMem;
    info.sm_count = static_cast<unsigned>(properties.multiProcessorCount);
    info.compute_capability = static_cast<unsigned>(properties.major * 10 + properties.minor);
    if (properties.major < 8) info.unusable = "compute capability below 8.0";
    devices.push_back(std::move(info));
  }
  return devices;
}

Result<DeviceUuid> DeviceAt(int ordinal) {
  const Result<const Driver*> driver = LoadDriver();
  if (!driver) return driver.error();
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) return CudaError(error, "cudaGetDeviceCount");
  if (ordinal < 0 || ordinal >= count) {
    return MakeError(Errc::kNotFound, "this process sees no GPU " + std::to_string(ordinal) + ", only " + std::to_string(count));
  }
  return UuidOf(**driver, ordinal);
}

Result<DeviceUuid> DeviceOf(const void* pointer) {
  const Result<const Driver*> driver = LoadDriver();
  if (!driver) return driver.error();
  int ordinal = -1;
  const CUresult error =
      (*driver)->PointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, reinterpret_cast<CUdeviceptr>(pointer));
  if (error != CUDA_SUCCESS || ordinal < 0) return MakeError(Errc::kInvalidArgument, "not a pointer to GPU memory of this process");
  return UuidOf(**driver, ordinal);
}

Result<MemoryPath> PathBetween(int importer, int owner) {
  DeviceInfo a, b;
  a.ordinal = importer;
  b.ordinal = owner;
  a.pci_address = PciAddress(importer);
  b.pci_address = PciAddress(owner);
  const LinkInfo link = Pair(a, b);
  if (!link.reachable) return MakeError(Errc::kUnsupported, "GPU " + a.pci_address + " can't reach " + b.pci_address + ": " + link.note);
  return link.path;
}

Result<Topology> ReadTopology() {
  Result<std::vector<DeviceInfo>> devices = ListDevices();
  if (!devices) return devices.error();
  Topology topology;
  topology.devices = std::move(*devices);
  for (const DeviceInfo& importer : topology.devices) {
    for (const DeviceInfo& owner : topology.devices) topology.links.push_back(Pair(importer, owner));
  }
  return topology;
}

Status MeasureTopology(Topology& topology) {
  std::vector<std::shared_ptr<const CudaDevice>> devices;
  for (const DeviceInfo& info : topology.devices) {
    auto device = CudaDevice::Open(info.uuid);
    if (!device) return device.error();
    devices.push_back(std::move(*device));
  }
  for (std::size_t importer = 0; importer < devices.size(); ++importer) {
    for (std::size_t owner = 0; owner < devices.size(); ++owner) {
      LinkInfo& link = topology.links[importer * devices.size() + owner];
      if (!link.reachable) continue;
      const Result<double> rate = MeasurePair(devices[importer], devices[owner]);
      if (!rate) return rate.error();
      link.measured_gb_per_s = *rate;
    }
  }
  return {};
}

}  // namespace kvm
