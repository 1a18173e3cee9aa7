// Marks of blocks that are being computed.
#include "client/python/src/bindings.h"
#include "client/python/src/deadline.h"

namespace kvm::python {
namespace {

using namespace nb::literals;

double Seconds(std::chrono::milliseconds time) { return static_cast<double>(time.count()) / 1000; }

}  // namespace

PyComputingMark MarkComputing(const PyClient& self, const BlockKeys& missing, double ttl_s) {
  const std::shared_ptr<Client> client = self.client.Get();
  const std::chrono::milliseconds ttl = ToMilliseconds(ttl_s, "ttl_s");
  ComputingMark mark = WithoutGil([&] { return client->MarkComputing(missing, ttl); });
  return {{std::make_shared<ComputingMark>(std::move(mark)), "mark"}};
}

void BindComputing(nb::module_& module) {
  nb::class_<BeingComputed>(module, "BeingComputed", "The mark of the first missing block that has one, as a lookup saw it.")
      .def_ro("blocks", &BeingComputed::blocks,
              "So many leading keys of the lookup will have blocks, once those of this mark are published. In tokens: times block_tokens.")
      .def_prop_ro(
          "age_s", [](const BeingComputed& self) { return Seconds(self.age); }, "Since the key was marked.")
      .def_prop_ro(
          "left_s", [](const BeingComputed& self) { return Seconds(self.left); }, "Until the mark ends by itself.")
      .def_ro("client_id", &BeingComputed::client_id, "Of the client that computes, as in kvctl clients.")
      .def_ro("own", &BeingComputed::own, "This client.");

  nb::class_<PyComputingMark>(
      module, "ComputingMark",
      "Says to other workers that this one is computing blocks. A hint: it ends by end(), at the end of its `with` statement, when its\n"
      "time is over, with the connection and with this process.")
      .def_prop_ro(
          "answered", [](const PyComputingMark& self) { return self.mark.closed() || self.mark.Get()->Answered(); },
          "Whether kvmd has answered, or never will. From then on lookups see who marked a key first.")
      .def(
          "wait",
          [](const PyComputingMark& self, double timeout_s) {
            const std::shared_ptr<ComputingMark> mark = self.mark.Get();
            const Deadline deadline = ToDeadline(timeout_s);
            Check(WaitWithoutGil([&] { return mark->Wait(deadline); }));
          },
          "timeout_s"_a = 2.0,
          "Waits for that. ResourceExhaustedError: some keys are not marked, the option named. UnavailableError: not connected.\n"
          "UnsupportedError: an older kvmd. DeadlineExceededError.")
      .def(
          "end", [](PyComputingMark& self) { self.mark.Release(); }, "Ends it, without waiting. Safe to call twice.")
      .def(
          "__enter__", [](nb::object self) { return self; }, nb::sig("def __enter__(self) -> ComputingMark"))
      .def(
          "__exit__", [](PyComputingMark& self, const nb::args&) { self.mark.Release(); }, "exception"_a,
          nb::sig("def __exit__(self, *exception: object) -> None"));
}

}  // namespace kvm::python
