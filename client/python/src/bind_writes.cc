// Binds block writes and publish requests: plain data, in lists without a Python object for each
// element.
#include <nanobind/ndarray.h>
#include <nanobind/operators.h>
#include <nanobind/stl/bind_vector.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "client/python/src/bindings.h"
#include "client/python/src/integers.h"

namespace kvm::python {
namespace {

using namespace nb::literals;

template <class T>
using NumpyVector = nb::ndarray<nb::numpy, T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// An array [writes] of one member of all elements.
template <class T, T BlockWrite::*kMember>
NumpyVector<T> ArrayOf(const BlockWrites& writes) {
  auto* values = new std::vector<T>();
  const nb::capsule owner(values, [](void* pointer) noexcept { delete static_cast<std::vector<T>*>(pointer); });
  values->reserve(writes.size());
  for (const BlockWrite& write : writes) values->push_back(write.*kMember);
  return NumpyVector<T>(values->data(), {values->size()}, owner);
}

[[noreturn]] void RaiseLengths(const std::string& what) { Raise(MakeError(Errc::kInvalidArgument, what)); }

BlockWrites WritesOf(const BlockIds& blocks, const Generations& generations) {
  if (blocks.values.size() != generations.values.size()) {
    RaiseLengths(std::to_string(blocks.values.size()) + " blocks and " + std::to_string(generations.values.size()) + " generations");
  }
  BlockWrites writes(blocks.values.size());
  for (std::size_t i = 0; i < writes.size(); ++i) writes[i] = {blocks.values[i], generations.values[i]};
  return writes;
}

// A request without its padding, for pickling.
struct PackedRequest {
  BlockKey key, parent;
  std::uint32_t depth, block;
  std::uint64_t generation;
};
static_assert(sizeof(PackedRequest) == 48);

template <class Packed, class Value, class Pack>
nb::bytes Serialize(const std::vector<Value>& values, Pack pack) {
  std::vector<Packed> packed;
  packed.reserve(values.size());
  for (const Value& value : values) packed.push_back(pack(value));
  return nb::bytes(packed.data(), packed.size() * sizeof(Packed));
}

template <class Packed, class Value, class Unpack>
std::vector<Value> Deserialize(const nb::bytes& state, Unpack unpack) {
  if (state.size() % sizeof(Packed) != 0) Raise(MakeError(Errc::kInvalidArgument, "not the pickled state of such a list"));
  std::vector<Value> values;
  values.reserve(state.size() / sizeof(Packed));
  for (std::size_t at = 0; at < state.size(); at += sizeof(Packed)) {
    Packed packed;
    std::memcpy(&packed, static_cast<const char*>(state.data()) + at, sizeof(Packed));
    values.push_back(unpack(packed));
  }
  return values;
}

struct PackedWrite {
  std::uint64_t block, generation;
};

void BindBlockWrite(nb::module_& module) {
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
  nb::bind_vector<BlockWrites>(module, "BlockWrites")
      .def_static("from_arrays", &WritesOf, "blocks"_a, "generations"_a, "Both [writes]. InvalidArgumentError: their lengths differ.")
      .def_prop_ro("blocks", &ArrayOf<std::uint32_t, &BlockWrite::block>, nb::rv_policy::automatic, "uint32 [writes], a copy.")
      .def_prop_ro("generations", &ArrayOf<std::uint64_t, &BlockWrite::generation>, nb::rv_policy::automatic, "uint64 [writes], a copy.")
      .def("__getstate__",
           [](const BlockWrites& self) {
             return Serialize<PackedWrite>(self, [](const BlockWrite& write) { return PackedWrite{write.block, write.generation}; });
           })
      .def("__setstate__", [](BlockWrites& self, const nb::bytes& state) {
        new (&self) BlockWrites(Deserialize<PackedWrite, BlockWrite>(state, [](const PackedWrite& packed) {
          return BlockWrite{static_cast<std::uint32_t>(packed.block), packed.generation};
        }));
      });
  module.attr("BlockWrites").attr("__doc__") = "List of BlockWrite without a Python object for each element. Picklable.";
}

void BindPublishRequest(nb::module_& module) {
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
  nb::bind_vector<PublishRequests>(module, "PublishRequests")
      .def_static(
          "run", &RunOf, "keys"_a, "parent"_a, "depth"_a, "writes"_a,
          "Requests for consecutive blocks of one chain; `parent` and `depth` are those of the first block. InvalidArgumentError: the\n"
          "numbers of keys and writes differ.")
      .def_static(
          "from_arrays",
          [](const BlockKeys& keys, const BlockKeys& parents, const Depths& depths, const BlockIds& blocks,
             const Generations& generations) {
            const BlockWrites writes = WritesOf(blocks, generations);
            if (keys.size() != writes.size() || parents.size() != writes.size() || depths.values.size() != writes.size()) {
              RaiseLengths(std::to_string(keys.size()) + " keys, " + std::to_string(parents.size()) + " parents, " +
                           std::to_string(depths.values.size()) + " depths and " + std::to_string(writes.size()) + " blocks");
            }
            PublishRequests requests(writes.size());
            for (std::size_t i = 0; i < requests.size(); ++i) requests[i] = {keys[i], parents[i], depths.values[i], writes[i]};
            return requests;
          },
          "keys"_a, "parents"_a, "depths"_a, "blocks"_a, "generations"_a,
          "One request for each entry, all [requests]; for keys in arrays see BlockKeys.from_array. InvalidArgumentError: lengths differ.")
      .def("__getstate__",
           [](const PublishRequests& self) {
             return Serialize<PackedRequest>(self, [](const PublishRequest& each) {
               return PackedRequest{each.key, each.parent, each.depth, each.write.block, each.write.generation};
             });
           })
      .def("__setstate__", [](PublishRequests& self, const nb::bytes& state) {
        new (&self) PublishRequests(Deserialize<PackedRequest, PublishRequest>(state, [](const PackedRequest& packed) {
          return PublishRequest{packed.key, packed.parent, packed.depth, {packed.block, packed.generation}};
        }));
      });
  module.attr("PublishRequests").attr("__doc__") =
      "List of PublishRequest without a Python object for each element. Every function that takes requests takes such a list or any\n"
      "iterable of PublishRequest. Picklable, so that one process may choose what another publishes.";
  nb::class_<PublishOutcome>(module, "PublishOutcome", "The outcome of a publish.")
      .def_ro("readable", &PublishOutcome::readable, "Blocks that peers may read now.")
      .def_ro("lost_race", &PublishOutcome::lost_race, "Another write of the block had begun; nothing published.")
      .def_ro("deferred", &PublishOutcome::deferred,
              "How many of the readable ones are sent later, since kvmd is away or the queue is\n"
              "full.");
}

}  // namespace

PublishRequests RunOf(const BlockKeys& keys, const BlockKey& parent, std::uint32_t depth, const BlockWrites& writes) {
  if (keys.size() != writes.size()) RaiseLengths(std::to_string(keys.size()) + " keys and " + std::to_string(writes.size()) + " writes");
  PublishRequests requests(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    requests[i] = {keys[i], i == 0 ? parent : keys[i - 1], depth + static_cast<std::uint32_t>(i), writes[i]};
  }
  return requests;
}

void BindWrites(nb::module_& module) {
  BindBlockWrite(module);
  BindPublishRequest(module);
}

}  // namespace kvm::python
