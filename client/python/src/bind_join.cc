// Joining: blocks of other nodes, by way of this node's kvmd-mesh.
#include <nanobind/stl/string.h>

#include "client/python/src/bindings.h"
#include "client/python/src/deadline.h"

namespace kvm::python {

using namespace nb::literals;

JoinOutcome JoinCache(const PyClient& self, const BlockKeys& keys, const PyRegion& destination, double timeout_s, std::size_t min_blocks,
                      double prefill_tokens_per_s, std::string source_hint, std::string mesh_socket) {
  const std::shared_ptr<Client> client = self.client.Get();
  const std::shared_ptr<Region> region = destination.region.Get();
  JoinOptions options;
  options.deadline = ToDeadline(timeout_s);
  options.min_blocks = min_blocks;
  options.prefill_tokens_per_s = prefill_tokens_per_s;
  options.source_hint = std::move(source_hint);
  options.mesh_socket = std::move(mesh_socket);
  return WaitWithoutGil([&] { return client->JoinCache(*region, keys, options); });
}

void BindJoin(nb::module_& module) {
  nb::class_<JoinOutcome>(module, "JoinOutcome", "What a join has brought.")
      .def_ro("blocks", &JoinOutcome::blocks, "Leading blocks that find() finds here now.")
      .def_ro("fetched", &JoinOutcome::fetched, "How many blocks this call brought here.")
      .def_ro("reason", &JoinOutcome::reason, "Why there are no more, for people; empty if all are here.")
      .def("__repr__", [](const JoinOutcome& self) {
        return "JoinOutcome(blocks=" + std::to_string(self.blocks) + ", fetched=" + std::to_string(self.fetched) +
               (self.reason.empty() ? "" : ", reason='" + self.reason + "'") + ")";
      });
}

}  // namespace kvm::python
