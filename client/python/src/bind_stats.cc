// Binds a client's counters and the regions that it could not map.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "client/python/src/bindings.h"
#include "client/python/src/device_id.h"

namespace kvm::python {

void BindStats(nb::module_& module) {
  nb::enum_<ConnectionState>(module, "ConnectionState")
      .value("CONNECTING", ConnectionState::kConnecting)
      .value("CONNECTED", ConnectionState::kConnected)
      .value("CLOSED", ConnectionState::kClosed);
  nb::class_<AdoptedBlock>(module, "AdoptedBlock",
                           "A block of an adopted region that its last owner has published and not rewritten since.")
      .def_ro("key", &AdoptedBlock::key)
      .def_ro("block", &AdoptedBlock::block)
      .def_ro("depth", &AdoptedBlock::depth, "Blocks before it in its prefix.");
  nb::class_<ReclaimedMemory>(module, "ReclaimedMemory", "What Client.reclaim_orphans has freed.")
      .def_ro("regions", &ReclaimedMemory::regions)
      .def_ro("blocks", &ReclaimedMemory::blocks, "Published ones.")
      .def_ro("bytes", &ReclaimedMemory::bytes)
      .def_ro("still_mapped", &ReclaimedMemory::still_mapped, "Of the regions: importers have not let go in time.");
  nb::class_<ClientStats> stats(module, "ClientStats", "Cumulative since the client connected, except mapped_regions.");
#define KVM_BIND(name, meaning) stats.def_ro(#name, &ClientStats::name, meaning);
  KVCLIENT_STATS(KVM_BIND, KVM_BIND, KVM_BIND)
#undef KVM_BIND

  nb::class_<UnmappedRegion>(module, "UnmappedRegion", "A peer's region that this process can't copy from.")
      .def_ro("name", &UnmappedRegion::name)
      .def_prop_ro(
          "for_device", [](const UnmappedRegion& self) { return NameOf(self.for_device); },
          "The importing GPU, \"GPU-<uuid>\"; None: host memory.")
      .def_prop_ro(
          "reason", [](const UnmappedRegion& self) { return ToException(self.reason); }, nb::sig("def reason(self) -> KvError"))
      .def("__repr__", [](const UnmappedRegion& self) {
        return "UnmappedRegion('" + self.name + "', for_device=" + NameOf(self.for_device).value_or("None") + ": " + self.reason.message +
               ")";
      });
}

}  // namespace kvm::python
