// Region: memory whose blocks this process publishes.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "client/python/src/bindings.h"
#include "client/python/src/deadline.h"
#include "client/python/src/device_id.h"
#include "client/python/src/integers.h"

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

// A view that keeps the memory alive: the array owns a reference to the region, not to the Python
// object.
HostBytes View(const std::shared_ptr<Region>& region, std::byte* data, std::size_t size) {
  auto* holder = new Owned<Region>(region, "region");
  const nb::capsule owner(holder, [](void* pointer) noexcept { delete static_cast<Owned<Region>*>(pointer); });
  return HostBytes(data, {size}, owner);
}

using ReadableBytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::size_t CheckedSegment(const Region& region, std::size_t segment) {
  if (segment >= region.segment_bytes().size()) {
    Raise(MakeError(Errc::kInvalidArgument, "segment " + std::to_string(segment) + " of region " + region.name() + ", which has " +
                                                std::to_string(region.segment_bytes().size())));
  }
  return segment;
}

void CheckOnHost(const Region& region, const char* instead) {
  if (region.device() == kHostMemory) return;
  Raise(MakeError(Errc::kUnsupported,
                  "region " + region.name() + " lies on " + FormatUuid(region.device()) + ", no array can: use " + instead));
}

HostBytes Segment(const PyRegion& self, std::size_t index) {
  const std::shared_ptr<Region> region = self.region.Get();
  const std::size_t segment = CheckedSegment(*region, index);
  CheckOnHost(*region, "kvclient.torch.segment_tensor");
  return View(region, region->SegmentData(segment), region->segment_bytes()[segment]);
}

HostBytes Block(const PyRegion& self, std::uint32_t block) {
  const std::shared_ptr<Region> region = self.region.Get();
  CheckedBlock(*region, block);
  CheckOnHost(*region, "kvclient.torch.view");
  if (region->geometry().ChunksPerBlock() != 1) {
    Raise(MakeError(Errc::kUnsupported, "region " + region->name() + " has blocks of " +
                                            std::to_string(region->geometry().ChunksPerBlock()) + " chunks; use segment()"));
  }
  return View(region, region->BlockData(block), region->block_bytes());
}

// A segment on a GPU, for libraries with GPU arrays. It owns a reference to the region, as a host
// array does.
struct PyDeviceSegment {
  Owned<Region> region;
  std::uintptr_t address;
  std::uint64_t size_bytes;
};

PyDeviceSegment DeviceSegment(const PyRegion& self, std::size_t index) {
  std::shared_ptr<Region> region = self.region.Get();
  const std::size_t segment = CheckedSegment(*region, index);
  if (region->device() == kHostMemory) Raise(MakeError(Errc::kUnsupported, "region " + region->name() + " is host memory: use segment()"));
  const auto address = reinterpret_cast<std::uintptr_t>(region->SegmentData(segment));
  const std::uint64_t size_bytes = region->segment_bytes()[segment];
  return {{std::move(region), "region"}, address, size_bytes};
}

void BindDeviceSegment(nb::module_& module) {
  nb::class_<PyDeviceSegment>(
      module, "DeviceSegment",
      "A segment of a region on a GPU, uint8 [size_bytes], for libraries that take __cuda_array_interface__ (torch, cupy, numba). It\n"
      "keeps the memory alive. It does not synchronize: order your work after the work that writes the memory.")
      .def_ro("address", &PyDeviceSegment::address)
      .def_ro("size_bytes", &PyDeviceSegment::size_bytes)
      .def_prop_ro(
          "__cuda_array_interface__",
          [](const PyDeviceSegment& self) {
            nb::dict out;
            out["version"] = 3;
            out["shape"] = nb::make_tuple(self.size_bytes);
            out["typestr"] = "|u1";
            out["data"] = nb::make_tuple(self.address, false);
            out["strides"] = nb::none();
            return out;
          },
          nb::sig("def __cuda_array_interface__(self) -> dict[str, object]"));
}

// `data`: read-only, contiguous bytes of a Python object.
void WriteBytes(const PyRegion& self, std::size_t segment, std::uint64_t offset, const ReadableBytes& data) {
  const std::shared_ptr<Region> region = self.region.Get();
  CheckedSegment(*region, segment);
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data.data()), data.size());
  Check(WithoutGil([&] { return region->WriteBytes(segment, offset, bytes); }));
}

nb::bytes ReadBytes(const PyRegion& self, std::size_t segment, std::uint64_t offset, std::size_t size) {
  const std::shared_ptr<Region> region = self.region.Get();
  CheckedSegment(*region, segment);
  const std::uint64_t bytes = region->segment_bytes()[segment];
  if (offset > bytes || size > bytes - offset) {
    Raise(MakeError(Errc::kInvalidArgument, std::to_string(size) + " bytes at offset " + std::to_string(offset) + " leave segment " +
                                                std::to_string(segment) + " of " + std::to_string(bytes)));
  }
  const nb::object out = nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
  if (!out.is_valid()) throw nb::python_error();
  const std::span<std::byte> target(reinterpret_cast<std::byte*>(PyBytes_AsString(out.ptr())), size);
  Check(WithoutGil([&] { return region->ReadBytes(segment, offset, target); }));
  return nb::borrow<nb::bytes>(out);
}

BlockWrites BeginWrites(const PyRegion& self, const BlockIds& blocks) {
  const std::shared_ptr<Region> region = self.region.Get();
  for (const std::uint32_t block : blocks.values) CheckedBlock(*region, block);
  BlockWrites writes;
  writes.reserve(blocks.values.size());
  for (const std::uint32_t block : blocks.values) writes.push_back(region->BeginWrite(block));
  return writes;
}

void Retract(const PyRegion& self, const BlockIds& blocks) {
  const std::shared_ptr<Region> region = self.region.Get();
  for (const std::uint32_t block : blocks.values) CheckedBlock(*region, block);
  region->Retract(blocks.values);
}

std::size_t OffloadBlocks(const PyRegion& self, const BlockIds& blocks) {
  const std::shared_ptr<Region> region = self.region.Get();
  for (const std::uint32_t block : blocks.values) CheckedBlock(*region, block);
  return WithoutGil([&] { return region->Offload(blocks.values); });
}

std::size_t OffloadBeforeReuse(const PyRegion& self, const BlockIds& blocks, double timeout_s) {
  const std::shared_ptr<Region> region = self.region.Get();
  const Deadline deadline = ToDeadline(timeout_s);
  for (const std::uint32_t block : blocks.values) CheckedBlock(*region, block);
  return Unwrap(WaitWithoutGil([&] { return region->OffloadBeforeReuse(blocks.values, deadline); }));
}

PublishOutcome PublishRun(const PyRegion& self, const BlockKeys& keys, const BlockKey& parent, std::uint32_t depth,
                          const BlockWrites& writes) {
  const std::shared_ptr<Region> region = self.region.Get();
  const PublishRequests requests = RunOf(keys, parent, depth, writes);
  return WithoutGil([&] { return region->Publish(requests); });
}

using RegionClass = nb::class_<PyRegion>;

void BindProperties(RegionClass& region) {
  region.def_prop_ro("name", [](const PyRegion& self) { return self.region.Get()->name(); })
      .def_prop_ro("model", [](const PyRegion& self) { return self.region.Get()->model(); })
      .def_prop_ro("shard", [](const PyRegion& self) { return self.region.Get()->shard(); })
      .def_prop_ro(
          "device", [](const PyRegion& self) { return NameOf(self.region.Get()->device()); }, "\"GPU-<uuid>\"; None: host memory.")
      .def_prop_ro("memory_kind", [](const PyRegion& self) { return self.region.Get()->memory_kind(); })
      .def_prop_ro("geometry", [](const PyRegion& self) { return self.region.Get()->geometry(); })
      .def_prop_ro("block_count", [](const PyRegion& self) { return self.region.Get()->block_count(); })
      .def_prop_ro("block_bytes", [](const PyRegion& self) { return self.region.Get()->block_bytes(); })
      .def_prop_ro(
          "segment_bytes",
          [](const PyRegion& self) {
            const std::span<const std::uint64_t> bytes = self.region.Get()->segment_bytes();
            return std::vector<std::uint64_t>(bytes.begin(), bytes.end());
          },
          "Size of each segment, in bytes.");
}

void BindMemory(RegionClass& region) {
  region
      .def("segment", &Segment, "index"_a = 0,
           "A segment as a writable array, uint8 [segment bytes]. It keeps the memory alive, also after close().\n"
           "UnsupportedError: the region is on a GPU.")
      .def("block", &Block, "block"_a,
           "A block as a writable array, uint8 [block_bytes]. UnsupportedError: its bytes are in several chunks, or on a GPU.")
      .def("device_segment", &DeviceSegment, "index"_a = 0,
           "A segment of a region on a GPU; kvclient.torch.segment_tensor makes a tensor of it. UnsupportedError: host memory.")
      .def("write_bytes", &WriteBytes, "segment"_a, "offset"_a, "data"_a,
           "Copies `data`, contiguous uint8 [n] in host memory (bytes, numpy, …), into a segment, on a GPU too, and waits for the copy.\n"
           "Call begin_write before and publish afterwards, as for any write of a block. InvalidArgumentError: outside the segment.")
      .def("read_bytes", &ReadBytes, "segment"_a, "offset"_a, "size"_a,
           "Returns `size` bytes of a segment, from `offset` on. Waits for the copy, not for other work on the GPU.");
}

void BindPublishing(RegionClass& region) {
  region
      .def(
          "begin_write",
          [](const PyRegion& self, std::uint32_t block) {
            const std::shared_ptr<Region> region = self.region.Get();
            return region->BeginWrite(CheckedBlock(*region, block));
          },
          "block"_a, "Withdraws the block and starts a new write of it. One atomic operation. InvalidArgumentError: out of range.")
      .def("begin_writes", &BeginWrites, "blocks"_a,
           "begin_write for each of `blocks` [n], in order. If one is out of range, no write is begun (InvalidArgumentError).")
      .def("retract", &Retract, "blocks"_a, "Withdraws `blocks` [n] without a write to follow. Errors: those of begin_writes.")
      .def(
          "publish",
          [](const PyRegion& self, const PublishRequests& requests) {
            const std::shared_ptr<Region> region = self.region.Get();
            return WithoutGil([&] { return region->Publish(requests); });
          },
          "requests"_a, nb::sig("def publish(self, requests: collections.abc.Iterable[PublishRequest]) -> PublishOutcome"),
          "Makes the blocks readable and tells kvmd, without waiting. Their bytes must be complete before the call. While kvmd is away,\n"
          "the blocks are remembered and published when it is back. For a region with checksums, the call reads the bytes first and\n"
          "waits for that.")
      .def("publish_run", &PublishRun, "keys"_a, "parent"_a, "depth"_a, "writes"_a,
           "publish for consecutive blocks of one chain: `parent` and `depth` are the first one's. See PublishRequests.run.")
      .def(
          "publish_on_stream",
          [](const PyRegion& self, const PublishRequests& requests, std::uintptr_t stream) {
            const std::shared_ptr<Region> region = self.region.Get();
            Check(WithoutGil([&] { return region->PublishOnStream(requests, StreamHandle{stream}); }));
          },
          "requests"_a, "stream"_a,
          nb::sig("def publish_on_stream(self, requests: collections.abc.Iterable[PublishRequest], stream: int) -> None"),
          "Publishes once all work that is queued on `stream` now has completed; delays neither caller nor stream. `stream`: a\n"
          "cudaStream_t of the region's GPU as an integer (torch.cuda.Stream.cuda_stream; 0: the default stream). For host memory it is\n"
          "the same as publish. Publishes that still wait when the region is closed are dropped. UnsupportedError, SystemCallError: the\n"
          "stream can't be followed, and nothing will be published.")
      .def("offload", &OffloadBlocks, "blocks"_a,
           "Offers published `blocks` [n] to kvmd's host cache, where they stay when they are overwritten here. A background thread\n"
           "copies them. This call returns at once, with the number of offered blocks: 0 without a host cache. InvalidArgumentError:\n"
           "out of range.")
      .def("offload_before_reuse", &OffloadBeforeReuse, "blocks"_a, "timeout_s"_a = 2.0,
           "The same for blocks that are overwritten next: waits until each has been copied or refused, and returns how many the host\n"
           "cache has. DeadlineExceededError: some are still under way. In both cases begin_write may follow at once.")
      .def(
          "current_generation",
          [](const PyRegion& self, std::uint32_t block) {
            const std::shared_ptr<Region> region = self.region.Get();
            return region->CurrentGeneration(CheckedBlock(*region, block));
          },
          "block"_a, "Even and above 0 if and only if the block is readable.");
}

}  // namespace

std::shared_ptr<Region> KeepAlive(std::shared_ptr<Region> region, nb::object memory) {
  if (memory.is_none()) return region;
  Region* raw = region.get();
  return {raw, [region = std::move(region), held = memory.release().ptr()](Region*) mutable {
            region.reset();  // unregisters; runs without the GIL
            DropReference(held);
          }};
}

void BindRegion(nb::module_& module) {
  nb::enum_<MemoryKind>(module, "MemoryKind", "How peers reach a region's memory.")
      .value("HOST_MEMFD", MemoryKind::kHostMemfd, "Host memory.")
      .value("CUDA_IPC", MemoryKind::kCudaIpc, "GPU memory of cudaMalloc, registered; ends with its owner.")
      .value("CUDA_VMM_FD", MemoryKind::kCudaVmmFd, "GPU memory of libkvclient: allocate_region, or kvclient.torch.mem_pool.");
  nb::enum_<OffloadMode>(module, "OffloadMode", "Which blocks of a region are offered to kvmd's host cache, if there is one.")
      .value("AUTO", OffloadMode::kAuto, "Those that kvmd asks for (--host-cache-admission).")
      .value("ASKED", OffloadMode::kAsked, "Only those that offload and offload_before_reuse name.")
      .value("NEVER", OffloadMode::kNever);
  BindDeviceSegment(module);
  RegionClass region(module, "Region",
                     "Memory whose blocks this process publishes. Thread-safe. Made by Client.allocate_region and register_region.\n\n"
                     "To write a block: `write = begin_write(b)`, which withdraws the old content from every reader at once, and must\n"
                     "come before the first byte changes; then overwrite the bytes; then `publish(...)`.");
  BindProperties(region);
  BindMemory(region);
  BindPublishing(region);
  region
      .def(
          "flush",
          [](const PyRegion& self, double timeout_s) {
            const std::shared_ptr<Region> region = self.region.Get();
            const Deadline deadline = ToDeadline(timeout_s);
            Check(WaitWithoutGil([&] { return region->Flush(deadline); }));
          },
          "timeout_s"_a = 2.0,
          "Waits until kvmd has answered every publish made before the call. DeadlineExceededError. UnavailableError: not connected;\n"
          "the publishes are repeated after a reconnect.")
      .def(
          "unregister",
          [](const PyRegion& self, double timeout_s) {
            const std::shared_ptr<Region> region = self.region.Get();
            const Deadline deadline = ToDeadline(timeout_s);
            Check(WaitWithoutGil([&] { return region->Unregister(deadline); }));
          },
          "timeout_s"_a = 2.0,
          "Withdraws all blocks permanently, removes the region from the registry, and waits until no importer maps it.\n"
          "DeadlineExceededError: an importer still maps it. UnavailableError: kvmd is away, so importers could not be asked. The\n"
          "blocks are withdrawn in both cases, and the region can only be closed.")
      .def(
          "close", [](PyRegion& self) { self.region.Close(); },
          "Releases the region, which is unregistered once no array made by segment() or block() is left. Waits at most the client's\n"
          "timeout.")
      .def_prop_ro("closed", [](const PyRegion& self) { return self.region.closed(); })
      .def(
          "__enter__", [](nb::object self) { return self; }, nb::sig("def __enter__(self) -> Region"))
      .def(
          "__exit__", [](PyRegion& self, const nb::args&) { self.region.Close(); }, "exception"_a,
          nb::sig("def __exit__(self, *exception: object) -> None"));
}

}  // namespace kvm::python
