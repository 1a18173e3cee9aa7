// Geometry: where the bytes of a region's blocks lie.
#include <sstream>

#include <nanobind/operators.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "client/python/src/bindings.h"

namespace kvm::python {
namespace {

using namespace nb::literals;

std::string RepresentPart(const GeometryPart& part) {
  std::ostringstream text;
  text << "GeometryPart(segment=" << part.segment << ", offset=" << part.offset << ", chunk_bytes=" << part.chunk_bytes
       << ", block_stride=" << part.block_stride << ", count=" << part.count << ", repeat_stride=" << part.repeat_stride << ")";
  return text.str();
}

}  // namespace

void BindGeometry(nb::module_& module) {
  nb::class_<GeometryPart>(
      module, "GeometryPart",
      "Chunk r of block b: `chunk_bytes` bytes at segment base + offset + r·repeat_stride + b·block_stride. All in bytes.")
      .def(
          "__init__",
          [](GeometryPart* self, std::uint32_t segment, std::uint64_t offset, std::uint64_t chunk_bytes, std::uint64_t block_stride,
             std::uint32_t count,
             std::uint64_t repeat_stride) { new (self) GeometryPart{segment, offset, chunk_bytes, block_stride, count, repeat_stride}; },
          nb::kw_only(), "segment"_a = 0, "offset"_a = 0, "chunk_bytes"_a, "block_stride"_a, "count"_a = 1, "repeat_stride"_a = 0)
      .def_ro("segment", &GeometryPart::segment, "Index into the region's segments.")
      .def_ro("offset", &GeometryPart::offset, "From the segment's base to block 0's first chunk.")
      .def_ro("chunk_bytes", &GeometryPart::chunk_bytes, "Contiguous bytes.")
      .def_ro("block_stride", &GeometryPart::block_stride, "From block b to block b + 1; at least chunk_bytes.")
      .def_ro("count", &GeometryPart::count, "Chunks of this part in each block.")
      .def_ro("repeat_stride", &GeometryPart::repeat_stride, "Between two chunks of one block; 0 if and only if count is 1.")
      .def(nb::self == nb::self, nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__repr__", &RepresentPart);

  nb::class_<Geometry>(
      module, "Geometry",
      "A block is the concatenation of its chunks: for every part in turn, for every r < part.count. Regions of one model agree on that\n"
      "order and on the total, but may divide the bytes into different chunks. Immutable.")
      .def(
          "__init__",
          [](Geometry* self, std::uint32_t block_count, std::vector<GeometryPart> parts) {
            new (self) Geometry{block_count, std::move(parts)};
          },
          "block_count"_a, "parts"_a)
      .def_static("contiguous", &Geometry::Contiguous, "block_count"_a, "block_bytes"_a, "[block_count, block_bytes] in one segment.")
      .def_ro("block_count", &Geometry::block_count)
      .def_ro("parts", &Geometry::parts, nb::rv_policy::copy)
      .def_prop_ro("block_bytes", &Geometry::BlockBytes, "Sum over all chunks of a block. Defined for valid geometries only.")
      .def_prop_ro("chunks_per_block", &Geometry::ChunksPerBlock)
      .def(
          "validate", [](const Geometry& self, const std::vector<std::uint64_t>& segment_bytes) { Check(self.Validate(segment_bytes)); },
          "segment_bytes"_a,
          "BadGeometryError, the part named: a size is zero, a chunk leaves its segment, two chunks share a byte, a limit.")
      .def(nb::self == nb::self, nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__repr__", [](const Geometry& self) {
        return "Geometry(" + std::to_string(self.block_count) + " blocks, " + std::to_string(self.parts.size()) + " parts)";
      });
}

}  // namespace kvm::python
