// Region: memory whose blocks this process publishes.
#include <nanobind/ndarray.h>
#include <nanobind/operators.h>
#include <nanobind/stl/bind_vector.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "client/python/src/bindings.h"
#include "client/python/src/deadline.h"

namespace kvm::python {
namespace {

using namespace nb::literals;
using HostBytes = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::uint32_t CheckedBlock(const Region& region, std::uint32_t block) {
  if (block >= region.block_count()) {
    Raise(MakeError(Errc::kInvalidArgument, "block " + std::to_string(block) + " of region " + region.name() + ", which has " +
                                                std::to_string(region.block_count())));
  }
  return block;
}

// A view that keeps the memory alive: the array holds the region, not the Python object.
HostBytes View(const std::shared_ptr<Region>& region, std::byte* data, std::size_t size) {
  auto* holder = new Owned<Region>(region, "region");
  const nb::capsule owner(holder, [](void* pointer) noexcept { delete static_cast<Owned<Region>*>(pointer); });
  return HostBytes(data, {size}, owner);
}

HostBytes Segment(const PyRegion& self, std::size_t segment) {
  const std::shared_ptr<Region> region = self.region.Get();
  if (segment >= self.segment_bytes.size()) {
    Raise(MakeError(Errc::kInvalidArgument, "segment " + std::to_string(segment) + " of region " + region->name() + ", which has " +
                                                std::to_string(self.segment_bytes.size())));
  }
  return View(region, region->SegmentData(segment), self.segment_bytes[segment]);
}

HostBytes Block(const PyRegion& self, std::uint32_t block) {
  const std::shared_ptr<Region> region = self.region.Get();
  if (region->geometry().ChunksPerBlock() != 1) {
    Raise(MakeError(Errc::kUnsupported, "region " + region->name() + " has blocks of " +
                                            std::to_string(region->geometry().ChunksPerBlock()) + " chunks; use segment()"));
  }
  return View(region, region->BlockData(CheckedBlock(*region, block)), region->block_bytes());
}

PublishOutcome PublishRun(const PyRegion& self, const BlockKeys& keys, const BlockKey& parent, std::uint32_t depth,
                          const BlockWrites& writes) {
  const std::shared_ptr<Region> region = self.region.Get();
  if (keys.size() != writes.size()) {
    Raise(MakeError(Errc::kInvalidArgument, std::to_string(keys.size()) + " keys and " + std::to_string(writes.size()) + " writes"));
  }
  return WithoutGil([&] {
    std::vector<PublishRequest> requests(keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i) {
      requests[i] = {keys[i], i == 0 ? parent : keys[i - 1], depth + static_cast<std::uint32_t>(i), writes[i]};
    }
    return region->Publish(requests);
  });
}

void BindWrites(nb::module_& module) {
  nb::class_<BlockWrite>(
      module, "BlockWrite",
      "A block's write in progress: the odd generation that begin_write returned. Plain data, picklable: a scheduler process\n"
      "may begin a write and a worker process finish it.")
      .def(
          "__init__",
          [](BlockWrite* self, std::uint32_t block, std::uint64_t generation) {
            new (self) BlockWrite{block, generation};
          },
          "block"_a, "generation"_a)
      .def_ro("block", &BlockWrite::block)
      .def_ro("generation", &BlockWrite::generation)
      .def(
          "__eq__",
          [](const BlockWrite& self, const BlockWrite& other) { return self.block == other.block && self.generation == other.generation; },
          nb::is_operator(), nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__", [](const BlockWrite& self) { return nb::hash(nb::make_tuple(self.block, self.generation)); })
      .def("__repr__",
           [](const BlockWrite& self) {
             return "BlockWrite(block=" + std::to_string(self.block) + ", generation=" + std::to_string(self.generation) + ")";
           })
      .def("__getstate__", [](const BlockWrite& self) { return std::make_tuple(self.block, self.generation); })
      .def("__setstate__", [](BlockWrite& self, const std::tuple<std::uint32_t, std::uint64_t>& state) {
        new (&self) BlockWrite{std::get<0>(state), std::get<1>(state)};
      });
  nb::bind_vector<BlockWrites>(module, "BlockWrites");
  module.attr("BlockWrites").attr("__doc__") = "List of BlockWrite, kept without a Python object for each.";

  nb::class_<PublishRequest>(module, "PublishRequest", "One block to publish.")
      .def(
          "__init__",
          [](PublishRequest* self, const BlockKey& key, const BlockKey& parent, std::uint32_t depth, const BlockWrite& write) {
            new (self) PublishRequest{key, parent, depth, write};
          },
          nb::kw_only(), "key"_a, "parent"_a, "depth"_a, "write"_a)
      .def_ro("key", &PublishRequest::key)
      .def_ro("parent", &PublishRequest::parent, "The key before it, or the chain's root for the first one.")
      .def_ro("depth", &PublishRequest::depth, "Blocks before it in its prefix.")
      .def_ro("write", &PublishRequest::write);

  nb::class_<PublishOutcome>(module, "PublishOutcome", "What became of a publish.")
      .def_ro("readable", &PublishOutcome::readable, "Blocks that peers may read now.")
      .def_ro("lost_race", &PublishOutcome::lost_race, "Another write of the block had begun; nothing published.")
      .def_ro("deferred", &PublishOutcome::deferred, "Of the readable ones: announced later, since kvmd is away or its queue is full.");
}

}  // namespace

void BindRegion(nb::module_& module) {
  BindWrites(module);
  nb::class_<PyRegion>(module, "Region",
                       "Memory whose blocks this process publishes. Thread-safe. Made by Client.allocate_region.\n\n"
                       "One block's life: `write = begin_write(b)` (withdraws the old content from every reader, at once; must come\n"
                       "before the first byte changes) → overwrite it → `publish(...)`.")
      .def_prop_ro("name", [](const PyRegion& self) { return self.region.Get()->name(); })
      .def_prop_ro("model", [](const PyRegion& self) { return self.region.Get()->model(); })
      .def_prop_ro("shard", [](const PyRegion& self) { return self.region.Get()->shard(); })
      .def_prop_ro("geometry", [](const PyRegion& self) { return self.region.Get()->geometry(); })
      .def_prop_ro("block_count", [](const PyRegion& self) { return self.region.Get()->block_count(); })
      .def_prop_ro("block_bytes", [](const PyRegion& self) { return self.region.Get()->block_bytes(); })
      .def_ro("segment_bytes", &PyRegion::segment_bytes, nb::rv_policy::copy, "Size of each segment, in bytes.")
      .def("segment", &Segment, "index"_a = 0,
           "A segment as a writable array, uint8 [segment bytes]. It keeps the memory alive, also after close().")
      .def("block", &Block, "block"_a,
           "A block as a writable array, uint8 [block_bytes]. UnsupportedError: its bytes are in several chunks.")
      .def(
          "begin_write",
          [](const PyRegion& self, std::uint32_t block) {
            const std::shared_ptr<Region> region = self.region.Get();
            return region->BeginWrite(CheckedBlock(*region, block));
          },
          "block"_a, "Withdraws the block and starts a new write of it. One atomic operation. InvalidArgumentError: out of range.")
      .def(
          "begin_writes",
          [](const PyRegion& self, const std::vector<std::uint32_t>& blocks) {
            const std::shared_ptr<Region> region = self.region.Get();
            for (const std::uint32_t block : blocks) CheckedBlock(*region, block);
            BlockWrites writes;
            writes.reserve(blocks.size());
            for (const std::uint32_t block : blocks) writes.push_back(region->BeginWrite(block));
            return writes;
          },
          "blocks"_a, "begin_write for each, in order.")
      .def(
          "retract",
          [](const PyRegion& self, const std::vector<std::uint32_t>& blocks) {
            const std::shared_ptr<Region> region = self.region.Get();
            for (const std::uint32_t block : blocks) CheckedBlock(*region, block);
            region->Retract(blocks);
          },
          "blocks"_a, "Withdraws blocks without meaning to write them now.")
      .def(
          "publish",
          [](const PyRegion& self, const std::vector<PublishRequest>& requests) {
            const std::shared_ptr<Region> region = self.region.Get();
            return WithoutGil([&] { return region->Publish(requests); });
          },
          "requests"_a,
          "Makes the blocks readable and tells kvmd, without waiting. Their bytes must be complete before the call. While kvmd is\n"
          "away they are remembered and announced when it is back.")
      .def("publish_run", &PublishRun, "keys"_a, "parent"_a, "depth"_a, "writes"_a,
           "publish for consecutive blocks of one chain: `parent` and `depth` are the first one's.")
      .def(
          "current_generation",
          [](const PyRegion& self, std::uint32_t block) {
            const std::shared_ptr<Region> region = self.region.Get();
            return region->CurrentGeneration(CheckedBlock(*region, block));
          },
          "block"_a, "Even and above 0 iff readable.")
      .def(
          "flush",
          [](const PyRegion& self, double timeout_s) {
            const std::shared_ptr<Region> region = self.region.Get();
            const Deadline deadline = ToDeadline(timeout_s);
            Check(WithoutGil([&] { return region->Flush(deadline); }));
          },
          "timeout_s"_a = 2.0,
          "Waits until kvmd has answered every publish made before. DeadlineExceededError; UnavailableError: not connected, the\n"
          "publishes are repeated after reconnecting.")
      .def(
          "unregister",
          [](const PyRegion& self, double timeout_s) {
            const std::shared_ptr<Region> region = self.region.Get();
            const Deadline deadline = ToDeadline(timeout_s);
            Check(WithoutGil([&] { return region->Unregister(deadline); }));
          },
          "timeout_s"_a = 2.0,
          "Takes the region out of the registry and waits until no importer maps it. DeadlineExceededError. Afterwards it can only be "
          "closed.")
      .def(
          "close", [](PyRegion& self) { self.region.Release(); },
          "Lets go of the region; unregisters it once no array made by segment() or block() is left. Waits at most the client's timeout.")
      .def_prop_ro("closed", [](const PyRegion& self) { return self.region.closed(); })
      .def(
          "__enter__", [](nb::object self) { return self; }, nb::sig("def __enter__(self) -> Region"))
      .def(
          "__exit__", [](PyRegion& self, const nb::args&) { self.region.Release(); }, "exception"_a,
          nb::sig("def __exit__(self, *exception: object) -> None"));
}

}  // namespace kvm::python
