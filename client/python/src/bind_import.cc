// Match, import tickets and their results.
#include <mutex>
#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "client/python/src/bindings.h"
#include "client/python/src/import_ticket.h"

namespace kvm::python {
namespace {

using namespace nb::literals;

BlockSource Source(const Match& match, Py_ssize_t index) {
  const auto size = static_cast<Py_ssize_t>(match.size());
  if (index < 0) index += size;
  if (index < 0 || index >= size) throw nb::index_error();
  return match[static_cast<std::size_t>(index)];
}

void BindMatch(nb::module_& module) {
  nb::enum_<MatchEnd>(module, "MatchEnd", "Why a match ended where it did.")
      .value("COMPLETE", MatchEnd::kComplete, "Every key was found.")
      .value("ABSENT", MatchEnd::kAbsent, "The next key is not published.")
      .value("STALE", MatchEnd::kStale, "It was published, but its block has been rewritten since.")
      .value("UNMAPPED", MatchEnd::kUnmapped, "It is published, in a region that this process has not mapped or can't map.")
      .value("UNAVAILABLE", MatchEnd::kUnavailable, "No registry: never connected to kvmd.");

  nb::class_<BlockSource>(module, "BlockSource", "Where one block of a match lies.")
      .def_ro("region", &BlockSource::region, "Row of the region table.")
      .def_ro("region_epoch", &BlockSource::region_epoch)
      .def_ro("block", &BlockSource::block)
      .def_ro("generation", &BlockSource::generation)
      .def_ro("own", &BlockSource::own, "In a region of this client.");

  nb::class_<Match>(
      module, "Match",
      "The longest run of leading keys that is present, with a source for each block: a sequence of BlockSource. It is a snapshot: the\n"
      "blocks can be rewritten or withdrawn at any time, which an import notices.")
      .def("__len__", &Match::size)
      .def("__bool__", [](const Match& self) { return !self.empty(); })
      .def("__getitem__", &Source, "index"_a)
      .def_prop_ro("end", &Match::end)
      .def_prop_ro(
          "being_computed", [](const Match& self) { return self.being_computed(); },
          "Of a lookup with `computing`: the mark of a missing block, if there is one; the same for all slices of a match.")
      .def(
          "slice",
          [](const Match& self, std::size_t first, std::optional<std::size_t> count) {
            return count ? self.Slice(first, *count) : self.Slice(first);
          },
          "first"_a, "count"_a = nb::none(), "The blocks [first, first + count) as a match of their own, clipped to this match's size.");
}

void BindResult(nb::module_& module) {
  nb::enum_<ImportFailure>(module, "ImportFailure", "Why a block was not imported.")
      .value("STALE", ImportFailure::kStale, "Rewritten by its owner before or during the copy.")
      .value("BEHIND_FAILED", ImportFailure::kBehindFailed, "An earlier block of the match failed.")
      .value("DEADLINE", ImportFailure::kDeadline, "Not copied in time.")
      .value("UNMAPPED", ImportFailure::kUnmapped, "The source region was withdrawn, or can't be reached from the destination.")
      .value("ERROR", ImportFailure::kError, "The copy could not be made.")
      .value("CORRUPT", ImportFailure::kCorrupt,
             "With verify, or in the sample of verify_one_in: the bytes are not those that were published.");
  nb::class_<FailedBlock>(module, "FailedBlock", "A block that contains arbitrary bytes and must be computed.")
      .def_ro("index", &FailedBlock::index, "Into the match.")
      .def_ro("block", &FailedBlock::block, "Of the destination region.")
      .def_ro("reason", &FailedBlock::reason);
  nb::class_<ImportResult>(module, "ImportResult", "The result of an import. Immutable.")
      .def_ro("valid", &ImportResult::valid, "Leading blocks copied and validated; only these may be used.")
      .def_ro("bytes", &ImportResult::bytes, "Of the valid ones.")
      .def_ro("writes", &ImportResult::writes, nb::rv_policy::copy,
              "One write for each destination block, to publish it with:\n"
              "[len(match)].")
      .def_ro("failed", &ImportResult::failed, nb::rv_policy::copy, "All blocks from index `valid` on.");
}

}  // namespace

void BindImport(nb::module_& module) {
  BindMatch(module);
  BindResult(module);
  nb::class_<PyImportTicket>(
      module, "ImportTicket",
      "An import under way. Thread-safe. Dropping it waits for copies that have started. It keeps the destination region alive.")
      .def("done", &PyImportTicket::Done, "Polls; never waits.")
      .def("wait", &PyImportTicket::Wait, "timeout_s"_a = nb::none(),
           "Waits and returns the result. DeadlineExceededError: the import is still under way.")
      .def_prop_ro(
          "event", &PyImportTicket::event,
          "A cudaEvent_t, as an integer, that completes once copy and validation have; None without wants_event, or if nothing was\n"
          "copied on a GPU. Valid while the ticket lives. Work that waits for it sees the copied bytes, but only the result tells which\n"
          "are valid.");
}

}  // namespace kvm::python
