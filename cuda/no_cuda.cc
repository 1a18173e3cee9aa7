// Devices and topology in a build without the CUDA toolkit.
#include "cuda/devices.h"
#include "cuda/topology/topology.h"
#include "kvm/exportable_memory.h"

namespace kvm {
namespace {

Error NotBuilt() { return MakeError(Errc::kUnsupported, "built without CUDA: configure where the CUDA toolkit is installed"); }

}  // namespace

std::string CudaToolkitVersion() { return {}; }
Result<std::vector<DeviceInfo>> ListDevices() { return NotBuilt(); }
Result<DeviceUuid> DeviceAt(int) { return NotBuilt(); }
Result<DeviceUuid> DeviceOf(const void*) { return NotBuilt(); }
Result<std::shared_ptr<MemoryBackend>> MakeCudaBackend(const DeviceUuid&) { return NotBuilt(); }
Result<std::vector<std::uint64_t>> ChecksumGpuMemory(const DeviceUuid&, const std::byte*, const Geometry&) { return NotBuilt(); }
Result<Topology> ReadTopology() { return NotBuilt(); }
Status MeasureTopology(Topology&) { return NotBuilt(); }
Result<MemoryPath> PathBetween(int, int) { return NotBuilt(); }
Result<void*> AllocateExportable(const DeviceUuid&, std::uint64_t) { return NotBuilt(); }
Status FreeExportable(void*) { return NotBuilt(); }
ExportableUsage ExportableInUse() { return {}; }

}  // namespace kvm
