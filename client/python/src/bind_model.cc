// ModelSpec, its differences, and the model a client has declared.
#include <nanobind/operators.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "client/python/src/bindings.h"

namespace kvm::python {
namespace {

using namespace nb::literals;

nb::dict FieldsOf(const ModelSpec& spec) {
  nb::dict fields;
  for (const auto& [name, value] : Fields(spec)) fields[nb::str(name.c_str(), name.size())] = nb::str(value.c_str(), value.size());
  return fields;
}

std::string RepresentSpec(const ModelSpec& spec) {
  const std::vector<std::pair<std::string, std::string>> defaults = Fields(ModelSpec{});
  const std::vector<std::pair<std::string, std::string>> fields = Fields(spec);
  std::string text = "ModelSpec(";
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (fields[i] == defaults[i]) continue;
    if (text.back() != '(') text += ", ";
    text += fields[i].first + "=" + nb::cast<std::string>(nb::repr(nb::str(fields[i].second.c_str(), fields[i].second.size())));
  }
  return text + ")";
}

// Keyword arguments are set by field name, so that a new field of ModelSpec needs only a property
// here.
void Initialize(ModelSpec* self, const nb::kwargs& fields) {
  ModelSpec spec;
  for (const auto& [name, value] : fields) {
    Check(SetField(spec, nb::cast<std::string>(name), nb::cast<std::string>(nb::str(value))));
  }
  new (self) ModelSpec(std::move(spec));
}

void BindFingerprint(nb::module_& module) {
  nb::class_<Fingerprint>(module, "Fingerprint", "SHA-256 of a canonical ModelSpec. Immutable, hashable.")
      .def_prop_ro("hex", &Fingerprint::ToHex, "64 lower-case digits.")
      .def("__bytes__", [](const Fingerprint& self) { return nb::bytes(self.bytes.data(), self.bytes.size()); })
      .def(nb::self == nb::self, nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__", [](const Fingerprint& self) { return nb::hash(nb::bytes(self.bytes.data(), self.bytes.size())); })
      .def("__repr__", [](const Fingerprint& self) { return "Fingerprint('" + self.ToHex() + "')"; });
}

void BindDifferences(nb::module_& module) {
  nb::class_<ModelFieldDifference>(module, "ModelFieldDifference", "One field in which two specs differ.")
      .def_ro("field", &ModelFieldDifference::field)
      .def_ro("ours", &ModelFieldDifference::ours)
      .def_ro("theirs", &ModelFieldDifference::theirs)
      .def("__repr__", [](const ModelFieldDifference& self) {
        return "ModelFieldDifference(" + self.field + ": ours '" + self.ours + "', theirs '" + self.theirs + "')";
      });
}

void BindModelSpec(nb::module_& module) {
  nb::class_<ModelSpec> spec(
      module, "ModelSpec",
      "Everything about a model that changes the bytes of a KV block. Two workers share blocks if and only if their specs are equal.\n"
      "Every field is a keyword argument; empty or 0 (1 for tp_size, pp_size) if not given. Not thread-safe.");
  spec.def("__init__", &Initialize, "fields"_a,
           nb::sig("def __init__(self, *, model_id: str = '', revision: str = '', weights_digest: str = '', tokenizer_digest: str = '', "
                   "rope: str = '', kv_dtype: str = '', kv_scales: str = '', layout: str = '', quantization: str = '', "
                   "num_layers: int = 0, num_kv_heads: int = 0, head_size: int = 0, block_tokens: int = 0, sliding_window: int = 0, "
                   "tp_size: int = 1, pp_size: int = 1) -> None"),
           "InvalidArgumentError: no such field, or not a number that fits.")
      .def_rw("model_id", &ModelSpec::model_id, "'meta-llama/Llama-3.1-8B'; required.")
      .def_rw("revision", &ModelSpec::revision, "Commit; may be empty if weights_digest is set.")
      .def_rw("weights_digest", &ModelSpec::weights_digest, "Digest of the weights; empty if unknown.")
      .def_rw("tokenizer_digest", &ModelSpec::tokenizer_digest,
              "Digest of the tokenizer, which gives token ids their meaning; empty if\n"
              "there is none.")
      .def_rw("rope", &ModelSpec::rope, "Canonical position settings ('theta=500000;scaling=llama3:8:1:4:8192').")
      .def_rw("kv_dtype", &ModelSpec::kv_dtype, "'bfloat16', 'float16', 'fp8_e4m3', …; required.")
      .def_rw("kv_scales", &ModelSpec::kv_scales, "Digest of KV scales for quantized KV, else empty.")
      .def_rw("layout", &ModelSpec::layout, "Order of a block's bytes: 'NHD', 'HND', 'MLA', …; required.")
      .def_rw("quantization", &ModelSpec::quantization, "Of the weights: '', 'fp8', 'awq', ….")
      .def_rw("num_layers", &ModelSpec::num_layers)
      .def_rw("num_kv_heads", &ModelSpec::num_kv_heads, "Of the whole model, before tensor parallelism.")
      .def_rw("head_size", &ModelSpec::head_size, "Elements.")
      .def_rw("block_tokens", &ModelSpec::block_tokens, "Tokens a block.")
      .def_rw("sliding_window", &ModelSpec::sliding_window, "Tokens, 0 for none.")
      .def_rw("tp_size", &ModelSpec::tp_size)
      .def_rw("pp_size", &ModelSpec::pp_size)
      .def(
          "validate", [](const ModelSpec& self) { Check(self.Validate()); }, "InvalidArgumentError, the field named.")
      .def("canonical", &ModelSpec::Canonical, "The text whose digest is the fingerprint.")
      .def_static(
          "from_canonical", [](const std::string& text) { return Unwrap(ModelSpec::FromCanonical(text)); }, "text"_a,
          "InvalidArgumentError: not a canonical spec.")
      .def("fingerprint", &ModelSpec::ComputeFingerprint)
      .def("fields", &FieldsOf, nb::sig("def fields(self) -> dict[str, str]"), "Name and value of every field, in order.")
      .def(
          "difference", [](const ModelSpec& self, const ModelSpec& other) { return Difference(self, other); }, "theirs"_a,
          "The fields in which two specs differ, in order; empty if they are equal.")
      .def(nb::self == nb::self, nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__repr__", &RepresentSpec)
      .def("__getstate__", [](const ModelSpec& self) { return std::make_tuple(self.Canonical()); })
      .def("__setstate__", [](ModelSpec& self, const std::tuple<std::string>& state) {
        new (&self) ModelSpec(Unwrap(ModelSpec::FromCanonical(std::get<0>(state))));
      });
  spec.def("__hash__", [](const ModelSpec&) -> Py_hash_t { throw nb::type_error("a ModelSpec can change: hash its fingerprint"); });
}

void BindDeclaredModels(nb::module_& module) {
  nb::class_<Model>(module, "Model", "A model that this client has declared. Immutable.")
      .def_ro("spec", &Model::spec, nb::rv_policy::copy, "A copy of the spec.")
      .def_ro("fingerprint", &Model::fingerprint, nb::rv_policy::copy);

  nb::class_<NearMiss>(module, "NearMiss",
                       "A model of another client that differs from one of ours in few fields, which explains why\n"
                       "no blocks are shared.")
      .def_ro("theirs", &NearMiss::theirs, nb::rv_policy::copy)
      .def_ro("differences", &NearMiss::differences, nb::rv_policy::copy)
      .def("__repr__", [](const NearMiss& self) {
        std::string text = "NearMiss(";
        for (const ModelFieldDifference& difference : self.differences) {
          text +=
              (text.back() == '(' ? "" : ", ") + difference.field + ": ours '" + difference.ours + "', theirs '" + difference.theirs + "'";
        }
        return text + ")";
      });
}

}  // namespace

void BindModel(nb::module_& module) {
  BindFingerprint(module);
  BindDifferences(module);
  BindModelSpec(module);
  BindDeclaredModels(module);
}

}  // namespace kvm::python
