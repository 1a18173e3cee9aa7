// Block keys and their derivation.
#include <array>
#include <cstring>
#include <span>

#include <nanobind/ndarray.h>
#include <nanobind/operators.h>
#include <nanobind/stl/bind_vector.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "client/python/src/bindings.h"
#include "client/python/src/integers.h"

namespace kvm::python {
namespace {

using namespace nb::literals;

using KeyArray = nb::ndarray<const std::uint64_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
using NumpyKeys = nb::ndarray<nb::numpy, std::uint64_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;

// A chain knows its block size, so that it can refuse a partial block.
class PyKeyChain {
 public:
  PyKeyChain(const Model& model, const Shard& shard, const std::vector<ExtraKey>& extras)
      : chain_(model.fingerprint, shard, extras), block_tokens_(model.spec.block_tokens) {}
  PyKeyChain(const ModelSpec& spec, const Shard& shard, const std::vector<ExtraKey>& extras)
      : chain_(spec.ComputeFingerprint(), shard, extras), block_tokens_(spec.block_tokens) {}

  BlockKey Next(const Tokens& tokens, const std::vector<ExtraKey>& extras) {
    if (tokens.values.size() != block_tokens_) {
      Raise(MakeError(Errc::kInvalidArgument, "a block of this model has " + std::to_string(block_tokens_) + " tokens, not " +
                                                  std::to_string(tokens.values.size())));
    }
    return chain_.Next(tokens.values, extras);
  }
  BlockKeys Extend(const Tokens& tokens) {
    BlockKeys keys;
    chain_.Extend(tokens.values, block_tokens_, keys);
    return keys;
  }
  const BlockKey& parent() const { return chain_.parent(); }
  void Resume(const BlockKey& parent) { chain_.Resume(parent); }

 private:
  KeyChain chain_;
  std::uint32_t block_tokens_;
};

// The hashes have long left the caches when a request is looked up: so many are fetched ahead.
constexpr std::size_t kHashesAhead = 12;
// So many names are derived from hashes before their keys are, so that they need not be kept.
constexpr std::size_t kNamesAtOnce = 128;

// Copies the first 16 bytes of hashes[first:first + names.size()], which must be there.
void NamesOf(const nb::list& hashes, std::size_t first, std::span<BlockKey> names) {
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i + kHashesAhead < names.size()) {
      const auto* ahead = reinterpret_cast<const char*>(PyList_GetItem(hashes.ptr(), static_cast<Py_ssize_t>(first + i + kHashesAhead)));
      __builtin_prefetch(ahead);
      __builtin_prefetch(ahead + 47);  // the last byte that is read, behind the object's header
    }
    char* bytes = nullptr;
    Py_ssize_t size = 0;
    PyObject* hash = PyList_GetItem(hashes.ptr(), static_cast<Py_ssize_t>(first + i));
    if (hash == nullptr || PyBytes_AsStringAndSize(hash, &bytes, &size) != 0) throw nb::python_error();
    if (size < 32) Raise(MakeError(Errc::kInvalidArgument, "a hash of " + std::to_string(size) + " bytes names no block"));
    std::memcpy(&names[i].lo, bytes, sizeof(names[i].lo));
    std::memcpy(&names[i].hi, bytes + sizeof(names[i].lo), sizeof(names[i].hi));
  }
}

void ExtendWithHashes(BlockKeys& names, const nb::list& hashes, std::size_t last) {
  last = std::min(last, nb::len(hashes));
  const std::size_t first = names.size();
  if (last <= first) return;
  BlockKeys more(last - first);
  NamesOf(hashes, first, more);
  names.insert(names.end(), more.begin(), more.end());
}

void BindBlockKey(nb::module_& module) {
  nb::class_<BlockKey>(module, "BlockKey", "128-bit name of a block's content. Immutable, hashable, picklable.")
      .def(nb::init<std::uint64_t, std::uint64_t>(), "lo"_a = 0, "hi"_a = 0, "Digest bytes 0..7 and 8..15, little endian.")
      .def_ro("lo", &BlockKey::lo)
      .def_ro("hi", &BlockKey::hi)
      .def_prop_ro("hex", &BlockKey::ToHex, "32 lower-case digits, in digest byte order.")
      .def_static(
          "from_hex", [](const std::string& hex) { return Unwrap(BlockKey::FromHex(hex)); }, "hex"_a, "InvalidArgumentError.")
      .def(nb::self == nb::self, nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def(nb::self < nb::self)
      .def("__hash__", [](const BlockKey& self) { return static_cast<Py_hash_t>(self.lo >> 1); })
      .def("__repr__", [](const BlockKey& self) { return "BlockKey('" + self.ToHex() + "')"; })
      .def("__getstate__", [](const BlockKey& self) { return std::make_tuple(self.lo, self.hi); })
      .def("__setstate__", [](BlockKey& self, const std::tuple<std::uint64_t, std::uint64_t>& state) {
        new (&self) BlockKey{std::get<0>(state), std::get<1>(state)};
      });
}

void BindBlockKeys(nb::module_& module) {
  static_assert(sizeof(BlockKey) == 2 * sizeof(std::uint64_t));
  nb::bind_vector<BlockKeys>(module, "BlockKeys")
      .def_static(
          "from_array",
          [](const KeyArray& array) {
            BlockKeys keys(array.shape(0));
            if (!keys.empty()) std::memcpy(keys.data(), array.data(), keys.size() * sizeof(BlockKey));
            return keys;
          },
          "array"_a, "From uint64 [keys, 2]: lo and hi of each. Copied.")
      .def(
          "to_array",
          [](const BlockKeys& self) {
            auto* copy = new BlockKeys(self);
            const nb::capsule owner(copy, [](void* pointer) noexcept { delete static_cast<BlockKeys*>(pointer); });
            return NumpyKeys(reinterpret_cast<std::uint64_t*>(copy->data()), {copy->size(), 2}, owner);
          },
          "uint64 [keys, 2]: lo and hi of each, a copy.")
      .def("extend_hashes", &ExtendWithHashes, "hashes"_a, "last"_a,
           nb::sig("def extend_hashes(self, hashes: list[bytes], last: int) -> None"),
           "Appends the names that `hashes[len(self):last]` give: their first 16 bytes.\n"
           "InvalidArgumentError: one has fewer than 32 bytes.")
      .def("__getstate__", [](const BlockKeys& self) { return nb::bytes(self.data(), self.size() * sizeof(BlockKey)); })
      .def("__setstate__", [](BlockKeys& self, const nb::bytes& state) {
        const auto* first = static_cast<const BlockKey*>(state.data());
        new (&self) BlockKeys(state.size() / sizeof(BlockKey));
        std::memcpy(self.data(), first, self.size() * sizeof(BlockKey));
      });
  module.attr("BlockKeys").attr("__doc__") =
      "List of BlockKey without a Python object for each element. Every function that takes keys takes such a list or any iterable of\n"
      "BlockKey.";
}

void BindShard(nb::module_& module) {
  nb::class_<Shard>(module, "Shard", "Which part of a model's KV a block holds.")
      .def(
          "__init__",
          [](Shard* self, std::uint16_t tp_rank, std::uint16_t tp_size, std::uint16_t pp_rank, std::uint16_t pp_size,
             std::uint16_t kv_group) {
            const Shard shard{tp_rank, tp_size, pp_rank, pp_size, kv_group};
            Check(shard.Validate());
            new (self) Shard(shard);
          },
          nb::kw_only(), "tp_rank"_a = 0, "tp_size"_a = 1, "pp_rank"_a = 0, "pp_size"_a = 1, "kv_group"_a = 0,
          "InvalidArgumentError: a rank is not below its size.")
      .def_ro("tp_rank", &Shard::tp_rank, "Tensor-parallel rank, below tp_size.")
      .def_ro("tp_size", &Shard::tp_size)
      .def_ro("pp_rank", &Shard::pp_rank, "Pipeline-parallel rank, below pp_size.")
      .def_ro("pp_size", &Shard::pp_size)
      .def_ro("kv_group", &Shard::kv_group, "KV-cache group: full attention, sliding window, ….")
      .def(nb::self == nb::self, nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__", [](const Shard& self) {
        return nb::hash(nb::make_tuple(self.tp_rank, self.tp_size, self.pp_rank, self.pp_size, self.kv_group));
      });
}

void BindExtraKey(nb::module_& module) {
  nb::class_<ExtraKey> extra(module, "ExtraKey", "Something besides the tokens that changes the KV bytes.");
  nb::enum_<ExtraKey::Kind>(extra, "Kind")
      .value("LORA", ExtraKey::Kind::kLora, "Adapter name or digest; of the request.")
      .value("CACHE_SALT", ExtraKey::Kind::kCacheSalt, "Of the request.")
      .value("MULTIMODAL", ExtraKey::Kind::kMultimodal, "Content hash and offset of a multimodal item; of the block.")
      .value("PROMPT_EMBEDS", ExtraKey::Kind::kPromptEmbeds, "Digest of prompt embeddings; of the block.")
      .value("OTHER", ExtraKey::Kind::kOther);
  extra.def(nb::init<ExtraKey::Kind, std::string>(), "kind"_a, "value"_a)
      .def(
          "__init__",
          [](ExtraKey* self, ExtraKey::Kind kind, const nb::bytes& value) {
            new (self) ExtraKey{kind, std::string(static_cast<const char*>(value.data()), value.size())};
          },
          "kind"_a, "value"_a)
      .def_ro("kind", &ExtraKey::kind)
      .def_prop_ro(
          "value", [](const ExtraKey& self) { return nb::bytes(self.value.data(), self.value.size()); },
          "As bytes; a str is encoded as UTF-8.");
}

void BindKeyChain(nb::module_& module) {
  nb::class_<PyKeyChain>(module, "KeyChain",
                         "Derives the keys of one request's blocks, in order. Not thread-safe; make one for each request.\n\n"
                         "`extras`: the extra keys of the whole request (LoRA, cache salt). Their order matters.")
      .def(nb::init<const Model&, const Shard&, const std::vector<ExtraKey>&>(), "model"_a, "shard"_a = Shard{},
           "extras"_a = std::vector<ExtraKey>{},
           nb::sig("def __init__(self, model: Model, shard: Shard = ..., extras: collections.abc.Sequence[ExtraKey] = ...) -> None"))
      .def(nb::init<const ModelSpec&, const Shard&, const std::vector<ExtraKey>&>(), "model"_a, "shard"_a = Shard{},
           "extras"_a = std::vector<ExtraKey>{},
           nb::sig("def __init__(self, model: ModelSpec, shard: Shard = ..., extras: collections.abc.Sequence[ExtraKey] = ...) -> None"),
           "From a spec alone, for a process that only derives keys and has no client.")
      .def("next", &PyKeyChain::Next, "tokens"_a, "extras"_a = std::vector<ExtraKey>{},
           nb::sig("def next(self, tokens: TokenIds, extras: collections.abc.Sequence[ExtraKey] = ...) -> BlockKey"),
           "Key of the next block; advances the chain. `tokens`: [block_tokens]. `extras`: the extra keys of this block.\n"
           "InvalidArgumentError: not a full block, or an id outside 32 bits.")
      .def("extend", &PyKeyChain::Extend, "tokens"_a,
           "Keys of all full blocks of `tokens`; a partial block at the end has none. Advances the chain.")
      .def_prop_ro("parent", &PyKeyChain::parent, nb::rv_policy::copy,
                   "Parent of the next block: the root before the first key, then the last key.")
      .def("resume", &PyKeyChain::Resume, "parent"_a, "Goes on behind a key of another chain with the same model, shard and extras.");

  nb::class_<PyShardKeys>(module, "ShardKeys",
                          "Derives the keys of one shard from names of the blocks' content that all shards share. Not thread-safe.\n\n"
                          "A name comes out of a collision-resistant chain over the prefix: a key of a KeyChain, or half of a SHA-256\n"
                          "hash that the engine has. `extras`: what changes the KV bytes and is not in the names.")
      .def(nb::init<const ModelSpec&, const Shard&, const std::vector<ExtraKey>&>(), "model"_a, "shard"_a,
           "extras"_a = std::vector<ExtraKey>{},
           nb::sig("def __init__(self, model: ModelSpec, shard: Shard, extras: collections.abc.Sequence[ExtraKey] = ...) -> None"))
      .def_prop_ro("root", &PyShardKeys::root, nb::rv_policy::copy, "Parent of the first block.")
      .def("extend", &PyShardKeys::Extend, "keys"_a, "names"_a, "Appends the keys of `names[len(keys):]` to `keys`.");
}

}  // namespace

PyShardKeys::PyShardKeys(const ModelSpec& spec, const Shard& shard, const std::vector<ExtraKey>& extras)
    : keys_(Unwrap(ShardKeys::Make(spec.ComputeFingerprint(), shard, extras))) {}

void PyShardKeys::Extend(BlockKeys& keys, const BlockKeys& names) {
  if (keys.size() >= names.size()) return;
  if (&keys == &names) Raise(MakeError(Errc::kInvalidArgument, "keys are kept apart from their names"));
  Check(keys_.Derive(std::span(names).subspan(keys.size()), keys));
}

void PyShardKeys::ExtendHashed(BlockKeys& keys, const nb::list& hashes, std::size_t last) {
  last = std::min(last, nb::len(hashes));
  if (last > keys.size()) keys.reserve(last);
  std::array<BlockKey, kNamesAtOnce> names;
  while (keys.size() < last) {
    const auto some = std::span(names).first(std::min(names.size(), last - keys.size()));
    NamesOf(hashes, keys.size(), some);
    Check(keys_.Derive(some, keys));
  }
}

void BindKeys(nb::module_& module) {
  BindBlockKey(module);
  BindBlockKeys(module);
  BindShard(module);
  BindExtraKey(module);
  BindKeyChain(module);
}

}  // namespace kvm::python
