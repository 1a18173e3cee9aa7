// Binds the list of GPUs and their names.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "client/python/src/bindings.h"
#include "client/python/src/device_id.h"
#include "kvm/exportable_memory.h"
#include "kvm/memory_checksum.h"

namespace kvm::python {

using namespace nb::literals;

void BindDevice(nb::module_& module) {
  nb::class_<DeviceInfo>(module, "DeviceInfo", "A GPU (or MIG instance) that this process sees.")
      .def_prop_ro(
          "uuid", [](const DeviceInfo& self) { return FormatUuid(self.uuid); }, "\"GPU-8f7a…\": the same in every process.")
      .def_ro("ordinal", &DeviceInfo::ordinal, "CUDA's number, in this process only.")
      .def_ro("name", &DeviceInfo::name)
      .def_ro("pci_address", &DeviceInfo::pci_address, "\"0000:0f:00.0\".")
      .def_ro("memory_bytes", &DeviceInfo::memory_bytes)
      .def_ro("sm_count", &DeviceInfo::sm_count, "Streaming multiprocessors.")
      .def_ro("compute_capability", &DeviceInfo::compute_capability, "90 for 9.0.")
      .def_ro("unusable", &DeviceInfo::unusable, "Why imports can't use it; empty if they can.")
      .def("__repr__", [](const DeviceInfo& self) {
        return "DeviceInfo(" + FormatUuid(self.uuid) + ", ordinal=" + std::to_string(self.ordinal) + ", name='" + self.name + "')";
      });
  module.def(
      "list_devices", [] { return Unwrap(WithoutGil([] { return ListDevices(); })); },
      "All GPUs that this process sees, by ordinal; creates no context. UnsupportedError: built without CUDA, no driver, or no GPU.");
  module.def(
      "device_at", [](int ordinal) { return FormatUuid(Unwrap(WithoutGil([&] { return DeviceAt(ordinal); }))); }, "ordinal"_a,
      "\"GPU-<uuid>\" of the GPU that CUDA numbers so in this process. NotFoundError: there is none. UnsupportedError: see list_devices.");
  module.def(
      "device_of",
      [](std::uintptr_t address) {
        return FormatUuid(Unwrap(WithoutGil([&] { return DeviceOf(reinterpret_cast<const void*>(address)); })));
      },
      "address"_a,
      "\"GPU-<uuid>\" of the GPU whose memory this process's device pointer `address` points to. InvalidArgumentError: it is none.\n"
      "UnsupportedError: see list_devices.");
  module.def(
      "check_exportable",
      [](int ordinal) {
        Check(WithoutGil([&]() -> Status {
          const Result<DeviceUuid> device = DeviceAt(ordinal);
          if (!device) return device.error();
          const Result<void*> memory = AllocateExportable(*device, 1);
          if (!memory) return memory.error();
          return FreeExportable(*memory);
        }));
      },
      "ordinal"_a,
      "Checks that a GPU has exportable memory: allocates the smallest amount and frees it. UnsupportedError, NotFoundError,\n"
      "ResourceExhaustedError: it failed; the message says why.");
  module.def(
      "exportable_in_use",
      [] {
        const ExportableUsage usage = ExportableInUse();
        return nb::make_tuple(usage.allocations, usage.bytes);
      },
      nb::sig("def exportable_in_use() -> tuple[int, int]"),
      "Allocations of kvclient.torch.mem_pool that torch has not freed, and their bytes.");
  module.def(
      "checksum_memory",
      [](std::uintptr_t address, std::uint64_t size_bytes, std::uint64_t piece_bytes, const std::optional<DeviceId>& device) {
        const DeviceUuid uuid = UuidOf(device);
        const auto sums =
            Unwrap(WithoutGil([&] { return ChecksumMemory(reinterpret_cast<const void*>(address), size_bytes, piece_bytes, uuid); }));
        return nb::bytes(reinterpret_cast<const char*>(sums.data()), sums.size() * sizeof(std::uint64_t));
      },
      "address"_a, "size_bytes"_a, "piece_bytes"_a, "device"_a = nb::none(),
      nb::sig("def checksum_memory(address: int, size_bytes: int, piece_bytes: int, device: DeviceId | None = None) -> bytes"),
      "Checksums of this process's memory, 8 bytes for each piece: position-mixed 64-bit sums, the same on a GPU (`device`) and in host\n"
      "memory (None). All writes of GPU memory must have completed before. The sums guard against faults and mistakes, not against an\n"
      "adversary. InvalidArgumentError: the piece size is 0 or too small. NotFoundError, UnsupportedError: no such GPU, or no CUDA.");
  module.def("cuda_toolkit_version", &CudaToolkitVersion,
             "Version of the CUDA toolkit that libkvclient was built with, '13.0'; '' if\n"
             "built without CUDA.");
}

}  // namespace kvm::python
