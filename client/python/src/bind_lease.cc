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
      "Leading blocks of a match that kvmd keeps for a time: in its host cache, or in the memory of dead processes. A lease ends by\n"
      "release(), at the end of its `with` statement, when its time is over, with the connection (so also when kvmd restarts), and with\n"
      "this process. It can lose blocks before that, when a process adopts a dead process's region or an operator runs `kvctl reclaim\n"
      "--force`; then `blocks` decreases. It does not replace the check: an import validates as always. It keeps kvmd's copy of a\n"
      "block, and a match may name a worker's copy; if the import of that fails, find again.")
      .def_prop_ro(
          "valid", [](const PyLease& self) { return !self.lease.closed() && self.lease.Get()->valid(); },
          "Whether the lease covers any block.")
      .def_prop_ro(
          "blocks", [](const PyLease& self) { return self.lease.closed() ? 0 : self.lease.Get()->blocks(); },
          "How many leading blocks of the match the lease covers now; 0 once it is over.")
      .def_prop_ro(
          "reason",
          [](const PyLease& self) -> nb::object {
            const Error error = self.lease.Get()->reason();
            return error.message.empty() ? nb::none() : ToException(error);
          },
          nb::sig("def reason(self) -> KvError | None"),
          "Why the lease covers no more blocks than `blocks`; None if it covers the whole match. Raises CancelledError after release().")
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
          "Makes the lease end `ttl_s` seconds from now, sooner or later than before. NotFoundError: it had ended.\n"
          "InvalidArgumentError: `ttl_s` is out of range. UnavailableError, DeadlineExceededError.")
      .def(
          "release", [](PyLease& self) { self.lease.Release(); }, "Ends it, without waiting. Safe to call twice.")
      .def(
          "__enter__", [](nb::object self) { return self; }, nb::sig("def __enter__(self) -> Lease"))
      .def(
          "__exit__", [](PyLease& self, const nb::args&) { self.lease.Release(); }, "exception"_a,
          nb::sig("def __exit__(self, *exception: object) -> None"));
}

}  // namespace kvm::python
