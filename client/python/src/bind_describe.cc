// Describing: which tokens blocks have, for the routers that this node's kvmd-mesh tells.
#include <nanobind/stl/string.h>

#include "client/python/src/bindings.h"
#include "client/python/src/deadline.h"
#include "client/python/src/errors.h"

namespace kvm::python {

DescribeOutcome DescribeBlocks(const PyClient& self, const ModelSpec& spec, const BlockKeys& keys, const Tokens& tokens, double timeout_s,
                               std::string adapter, std::string mesh_socket) {
  const std::shared_ptr<Client> client = self.client.Get();
  DescribeOptions options;
  options.deadline = ToDeadline(timeout_s);
  options.adapter = std::move(adapter);
  options.mesh_socket = std::move(mesh_socket);
  return Unwrap(WaitWithoutGil([&] { return client->DescribeBlocks(spec, keys, tokens.values, options); }));
}

void BindDescribe(nb::module_& module) {
  nb::class_<DescribeOutcome>(module, "DescribeOutcome", "What kvmd-mesh has made of a description.")
      .def_ro("wanted", &DescribeOutcome::wanted, "False: it publishes no events, so there is no use in telling it.")
      .def_ro("taken", &DescribeOutcome::taken, "Leading blocks that it has taken; fewer than all if too many wait.")
      .def_ro("process", &DescribeOutcome::process,
              "A number of the kvmd-mesh process that has answered. Another one knows nothing of what this one was told.")
      .def("__repr__", [](const DescribeOutcome& self) {
        return std::string("DescribeOutcome(wanted=") + (self.wanted ? "True" : "False") + ", taken=" + std::to_string(self.taken) +
               ", process=" + std::to_string(self.process) + ")";
      });
}

}  // namespace kvm::python
