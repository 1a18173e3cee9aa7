// ModelSpec: everything about a model that changes the bytes of a KV block.
//
// Two workers share blocks if and only if their canonical specs are equal. A difference is reported
// with the name of the field that differs, never as a plain miss. One table (Fields()) drives
// canonical form, fingerprint, comparison, wire form and `kvctl --json`, so a new field is added in
// one place.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/block_key.h"
#include "kvm/error.h"

namespace kvm {

// All that changes a byte of a KV block. Engines share if their specs are equal in every field.
struct ModelSpec {
  std::string model_id;        // "meta-llama/Llama-3.1-8B"; required
  std::string revision;        // commit; may be empty if weights_digest is set
  std::string weights_digest;  // digest of the weights; empty if unknown
  // The tokenizer gives token ids their meaning; empty if there is none
  std::string tokenizer_digest;
  // Canonical rope/position settings ("theta=500000;scaling=llama3:8:1:4:8192")
  std::string rope;
  std::string kv_dtype;      // "bfloat16", "float16", "fp8_e4m3", …; required
  std::string kv_scales;     // digest of KV scales for quantized KV, else empty
  std::string layout;        // order of a block's bytes: "NHD", "HND", "MLA", …; required
  std::string quantization;  // of the weights: "", "fp8", "awq", …
  std::uint32_t num_layers = 0;
  std::uint32_t num_kv_heads = 0;    // of the whole model, before tensor parallelism
  std::uint32_t head_size = 0;       // elements
  std::uint32_t block_tokens = 0;    // tokens a block
  std::uint32_t sliding_window = 0;  // tokens, 0 for none
  std::uint32_t tp_size = 1;
  std::uint32_t pp_size = 1;

  friend bool operator==(const ModelSpec&, const ModelSpec&) = default;

  // kInvalidArgument, the field named: required fields empty, sizes zero, a value longer than
  // kMaxFieldBytes, or a canonical form longer than kMaxCanonicalBytes.
  [[nodiscard]] Status Validate() const;

  // "kvm.model.1\n", then `name '=' length ':' value '\n'` for every field in declaration order.
  std::string Canonical() const;
  // kInvalidArgument
  [[nodiscard]] static Result<ModelSpec> FromCanonical(std::string_view canonical);

  // SHA-256 of Canonical().
  Fingerprint ComputeFingerprint() const;

  static constexpr std::size_t kMaxFieldBytes = 512;
  static constexpr std::size_t kMaxCanonicalBytes = 1920;
};

// A field in which two models differ, and its values as canonical() writes them.
struct ModelFieldDifference {
  std::string field;
  std::string ours;
  std::string theirs;
};

// The fields in which two specs differ, in declaration order; empty if the specs are equal.
std::vector<ModelFieldDifference> Difference(const ModelSpec& ours, const ModelSpec& theirs);

// Name and value of every field, in declaration order. Numbers in decimal.
std::vector<std::pair<std::string, std::string>> Fields(const ModelSpec& spec);
// Sets one field from text. kInvalidArgument: no such field, or not a number that fits.
[[nodiscard]] Status SetField(ModelSpec& spec, std::string_view name, std::string_view value);

}  // namespace kvm
