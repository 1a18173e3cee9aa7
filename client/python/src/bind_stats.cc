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
      .def_ro("still_mapped", &ReclaimedMemory::still_mapped, "How many of the regions importers have not unmapped in time.");
  nb::class_<ClientStats>(module, "ClientStats", "Cumulative since the client connected, except mapped_regions.")
      .def_ro("finds", &ClientStats::finds)
      .def_ro("keys_looked_up", &ClientStats::keys_looked_up)
      .def_ro("keys_matched", &ClientStats::keys_matched)
      .def_ro("imports", &ClientStats::imports)
      .def_ro("blocks_imported", &ClientStats::blocks_imported, "Validated ones only.")
      .def_ro("blocks_failed", &ClientStats::blocks_failed)
      .def_ro("bytes_imported", &ClientStats::bytes_imported, "Of validated blocks.")
      .def_ro("blocks_published", &ClientStats::blocks_published)
      .def_ro("publishes_deferred", &ClientStats::publishes_deferred)
      .def_ro("publishes_refused", &ClientStats::publishes_refused, "By kvmd: full, enough replicas, stale.")
      .def_ro("reconnects", &ClientStats::reconnects)
      .def_ro("blocks_offloaded", &ClientStats::blocks_offloaded, "Copied to kvmd's host cache.")
      .def_ro("offloads_dropped", &ClientStats::offloads_dropped, "Not copied: the queue was full, or the block was overwritten first.")
      .def_ro("offloads_refused", &ClientStats::offloads_refused, "By kvmd: no room for them.")
      .def_ro("blocks_from_host_cache", &ClientStats::blocks_from_host_cache, "Of blocks_imported.")
      .def_ro("mapped_regions", &ClientStats::mapped_regions, "Regions of peers that are mapped now.");

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
