#include "kvm/model_spec.h"

#include <openssl/evp.h>

#include <charconv>
#include <variant>

namespace kvm {
namespace {

using TextMember = std::string ModelSpec::*;
using NumberMember = std::uint32_t ModelSpec::*;

struct Field {
  std::string_view name;
  std::variant<TextMember, NumberMember> member;
  bool required;
};

// In declaration order. The order is part of the fingerprint, so a field is only ever appended,
// with a new canonical version.
constexpr Field kFields[] = {
    {"model_id", &ModelSpec::model_id, true},
    {"revision", &ModelSpec::revision, false},
    {"weights_digest", &ModelSpec::weights_digest, false},
    {"tokenizer_digest", &ModelSpec::tokenizer_digest, false},
    {"rope", &ModelSpec::rope, false},
    {"kv_dtype", &ModelSpec::kv_dtype, true},
    {"kv_scales", &ModelSpec::kv_scales, false},
    {"layout", &ModelSpec::layout, true},
    {"quantization", &ModelSpec::quantization, false},
    {"num_layers", &ModelSpec::num_layers, true},
    {"num_kv_heads", &ModelSpec::num_kv_heads, true},
    {"head_size", &ModelSpec::head_size, true},
    {"block_tokens", &ModelSpec::block_tokens, true},
    {"sliding_window", &ModelSpec::sliding_window, false},
    {"tp_size", &ModelSpec::tp_size, true},
    {"pp_size", &ModelSpec::pp_size, true},
};

constexpr std::string_view kCanonicalTag = "kvm.model.1\n";

std::string Value(const ModelSpec& spec, const Field& field) {
  if (const auto* text = std::get_if<TextMember>(&field.member)) return spec.**text;
  return std::to_string(spec.*std::get<NumberMember>(field.member));
}

Error Invalid(std::string message) { return MakeError(Errc::kInvalidArgument, "model spec: " + std::move(message)); }

}  // namespace

Status ModelSpec::Validate() const {
  for (const Field& field : kFields) {
    const std::string value = Value(*this, field);
    if (field.required && (value.empty() || value == "0")) return Invalid(std::string(field.name) + " is required");
    if (value.size() > kMaxFieldBytes) {
      return Invalid(std::string(field.name) + " has " + std::to_string(value.size()) + " bytes, the limit is " +
                     std::to_string(kMaxFieldBytes));
    }
  }
  const std::size_t canonical_bytes = Canonical().size();
  if (canonical_bytes > kMaxCanonicalBytes) {
    return Invalid("all fields together have " + std::to_string(canonical_bytes) + " bytes, the limit is " +
                   std::to_string(kMaxCanonicalBytes));
  }
  return {};
}

std::string ModelSpec::Canonical() const {
  std::string out(kCanonicalTag);
  for (const Field& field : kFields) {
    const std::string value = Value(*this, field);
    out.append(field.name).append("=").append(std::to_string(value.size())).append(":").append(value).append("\n");
  }
  return out;
}

Result<ModelSpec> ModelSpec::FromCanonical(std::string_view canonical) {
  if (!canonical.starts_with(kCanonicalTag)) return Invalid("unknown canonical version");
  canonical.remove_prefix(kCanonicalTag.size());
  ModelSpec spec;
  for (const Field& field : kFields) {
    if (!canonical.starts_with(field.name) || canonical.substr(field.name.size(), 1) != "=") {
      return Invalid("canonical form lacks " + std::string(field.name));
    }
    canonical.remove_prefix(field.name.size() + 1);
    std::size_t length = 0;
    const auto [end, ec] = std::from_chars(canonical.data(), canonical.data() + canonical.size(), length);
    const std::size_t digits = static_cast<std::size_t>(end - canonical.data());
    if (ec != std::errc{} || length > kMaxFieldBytes || canonical.size() < digits + 1 + length + 1 || canonical[digits] != ':' ||
        canonical[digits + 1 + length] != '\n') {
      return Invalid("canonical form is damaged at " + std::string(field.name));
    }
    const std::string_view value = canonical.substr(digits + 1, length);
    if (Status set = SetField(spec, field.name, value); !set) return set.error();
    // A length "03:" or a number "032" would give one spec two canonical forms, and so two
    // fingerprints.
    if (digits != std::to_string(length).size() || Value(spec, field) != value) {
      return Invalid("canonical form writes " + std::string(field.name) + " in another way");
    }
    canonical.remove_prefix(digits + 1 + length + 1);
  }
  if (!canonical.empty()) return Invalid("canonical form has trailing bytes");
  return spec;
}

Fingerprint ModelSpec::ComputeFingerprint() const {
  const std::string canonical = Canonical();
  Fingerprint fingerprint;
  unsigned size = 0;
  EVP_Digest(canonical.data(), canonical.size(), fingerprint.bytes.data(), &size, EVP_sha256(), nullptr);
  return fingerprint;
}

std::vector<ModelFieldDifference> Difference(const ModelSpec& ours, const ModelSpec& theirs) {
  std::vector<ModelFieldDifference> out;
  for (const Field& field : kFields) {
    std::string a = Value(ours, field), b = Value(theirs, field);
    if (a != b) out.push_back({std::string(field.name), std::move(a), std::move(b)});
  }
  return out;
}

std::vector<std::pair<std::string, std::string>> Fields(const ModelSpec& spec) {
  std::vector<std::pair<std::string, std::string>> out;
  for (const Field& field : kFields) out.emplace_back(field.name, Value(spec, field));
  return out;
}

Status SetField(ModelSpec& spec, std::string_view name, std::string_view value) {
  for (const Field& field : kFields) {
    if (field.name != name) continue;
    if (const auto* text = std::get_if<TextMember>(&field.member)) {
      spec.** text = value;
      return {};
    }
    std::uint32_t number = 0;
    const auto [end, ec] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (ec != std::errc{} || end != value.data() + value.size()) {
      return Invalid(std::string(name) + " is not a 32-bit number: " + std::string(value));
    }
    spec.*std::get<NumberMember>(field.member) = number;
    return {};
  }
  return Invalid("no field named " + std::string(name));
}

}  // namespace kvm
