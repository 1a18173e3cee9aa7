// Leases: blocks that kvmd promises to keep.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "client/python/src/bindings.h"
#include "client/python/src/deadline.h"

namespace kvm::python {

using namespace nb::literals;

PyLease AcquireLease(const PyClient& self, const Match& match, double ttl_s, double timeout_s) {
  const std::shared_ptr<Client> client = self.client.Get();
  const std::chrono::milliseconds ttl = ToMilliseconds(ttl_s, "ttl_s");
  const Deadline deadline = ToDeadline(timeout_s);
  Lease lease = Unwrap(WaitWithoutGil([&] { return client->AcquireLease(match, ttl, deadline); }));
  return {{std::make_shared<Lease>(std::move(lease)), "lease"}};
}

void BindLease(nb::module_& module) {
  nb::class_<PyLease>(
      module, "Lease",
      "Leading blocks of a match that kvmd keeps for a time: in its host cache, or in the memory of dead processes. Ends by\n"
      "release(), with its `with` statement, by its time, with the connection (so with kvmd's restart), and with this\n"
      "process. Blocks can be taken from it before that, by who adopts a dead process's region or by `kvctl reclaim\n"
      "--force`: `blocks` falls then. It never replaces the check: an import validates as ever. Nor does it pin a source: a\n"
      "match may name a worker's own copy of a block of which kvmd keeps another; find again if its import fails.")
      .def_prop_ro(
          "valid", [](const PyLease& self) { return !self.lease.closed() && self.lease.Get()->valid(); }, "Whether anything is held.")
      .def_prop_ro(
          "blocks", [](const PyLease& self) { return self.lease.closed() ? 0 : self.lease.Get()->blocks(); },
          "Leading blocks of the match that are held now; 0 once the lease is over.")
      .def_prop_ro(
          "reason",
          [](const PyLease& self) -> nb::object {
            const Error error = self.lease.Get()->reason();
            return error.message.empty() ? nb::none() : ToException(error);
          },
          nb::sig("def reason(self) -> KvError | None"),
          "Why no more blocks than `blocks` are held; None: all of the match are. Raises CancelledError once it was released.")
      .def_prop_ro(
          "left_s",
          [](const PyLease& self) { return self.lease.closed() ? 0.0 : static_cast<double>(self.lease.Get()->left().count()) / 1000; },
          "Seconds until it ends by itself; 0 once it is over.")
      .def(
          "renew",
          [](const PyLease& self, double ttl_s, double timeout_s) {
            const std::shared_ptr<Lease> lease = self.lease.Get();
            const std::chrono::milliseconds ttl = ToMilliseconds(ttl_s, "ttl_s");
            const Deadline deadline = ToDeadline(timeout_s);
            Check(WaitWithoutGil([&] { return lease->Renew(ttl, deadline); }));
          },
          "ttl_s"_a, "timeout_s"_a = 2.0,
          "Lets it end `ttl_s` from now instead. NotFoundError: it was over. InvalidArgumentError: no such time. UnavailableError,\n"
          "DeadlineExceededError.")
      .def(
          "release", [](PyLease& self) { self.lease.Release(); }, "Ends it, without waiting. Safe to call twice.")
      .def(
          "__enter__", [](nb::object self) { return self; }, nb::sig("def __enter__(self) -> Lease"))
      .def(
          "__exit__", [](PyLease& self, const nb::args&) { self.lease.Release(); }, "exception"_a,
          nb::sig("def __exit__(self, *exception: object) -> None"));
}

}  // namespace kvm::python
