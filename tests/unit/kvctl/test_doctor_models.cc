// kvctl doctor on engines of one model that can't share.
#include "client/kvctl/doctor/doctor_checks.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

ModelSpec Llama(std::uint32_t block_tokens) {
  ModelSpec spec;
  spec.model_id = "LlamaForCausalLM";
  spec.weights_digest = "config=1;weights=2";
  spec.kv_dtype = "bfloat16";
  spec.layout = "32*bfloat16x" + std::to_string(block_tokens);
  spec.num_layers = 32;
  spec.num_kv_heads = 8;
  spec.head_size = 128;
  spec.block_tokens = block_tokens;
  return spec;
}

ModelEntry Model(std::uint32_t row, const ModelSpec& spec) { return {row, spec.ComputeFingerprint(), spec}; }

RegionEntry Region(std::uint32_t model, layout::RegionState state = layout::RegionState::kLive) {
  RegionEntry region;
  region.info.model = model;
  region.info.state = static_cast<std::uint32_t>(state);
  return region;
}

}  // namespace

TEST_CASE("Doctor: engines of one model with blocks of different sizes are one warning that names the fields", "[unit]") {
  const std::vector<ModelEntry> models{Model(3, Llama(16)), Model(5, Llama(32))};
  const std::vector<Check> checks = CheckModels(models, {Region(3), Region(3), Region(5)});
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].verdict == Verdict::kWarn);
  CHECK(checks[0].detail.find("LlamaForCausalLM") != std::string::npos);
  CHECK(checks[0].detail.find("block_tokens (16 and 32)") != std::string::npos);
  CHECK(checks[0].detail.find("layout (32*bfloat16x16 and 32*bfloat16x32)") != std::string::npos);
}

TEST_CASE("Doctor: engines of one model with another type of KV are a warning, though their weights differ", "[unit]") {
  ModelSpec half = Llama(16);
  half.kv_dtype = "float16";
  half.weights_digest = "config=3;weights=4";
  const std::vector<Check> checks = CheckModels({Model(0, Llama(16)), Model(1, half)}, {Region(0), Region(1)});
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].detail.find("kv_dtype (bfloat16 and float16)") != std::string::npos);
}

TEST_CASE("Doctor: models that are meant to be different, or that no live region serves, are no finding", "[unit]") {
  ModelSpec other_weights = Llama(32), other_shape = Llama(32), other_name = Llama(32);
  other_weights.weights_digest = "config=1;weights=3";
  other_shape.num_layers = 80;
  other_name.model_id = "QwenForCausalLM";
  for (const ModelSpec& other : {other_weights, other_shape, other_name, Llama(16)}) {
    CHECK(CheckModels({Model(0, Llama(16)), Model(1, other)}, {Region(0), Region(1)}).empty());
  }
  const std::vector<ModelEntry> models{Model(0, Llama(16)), Model(1, Llama(32))};
  CHECK(CheckModels(models, {Region(0)}).empty());
  CHECK(CheckModels(models, {Region(0), Region(1, layout::RegionState::kOrphan)}).empty());
}
