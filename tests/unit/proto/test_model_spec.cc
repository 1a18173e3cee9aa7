// ModelSpec: canonical form, fingerprint, differences by field name, refusal of damaged or
// oversized specs (I9).
#include <set>
#include <string>

#include "kvm/model_spec.h"
#include "tests/catch.h"
#include "tests/support/data/model_specs.h"

namespace {

using namespace kvm;
using test::LlamaSpec;

// Another value for `field` that Validate accepts.
std::string Changed(const std::string& field, const std::string& value) {
  const bool number = !value.empty() && value.find_first_not_of("0123456789") == std::string::npos;
  static_cast<void>(field);
  return number ? std::to_string(std::stoul(value) + 1) : value + "x";
}

std::string Replace(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("Model spec: the canonical form round trips", "[unit]") {
  for (const ModelSpec& spec : {ModelSpec{}, LlamaSpec(), test::AwkwardSpec()}) {
    const Result<ModelSpec> back = ModelSpec::FromCanonical(spec.Canonical());
    KVM_REQUIRE_OK(back);
    CHECK(*back == spec);
    CHECK(back->ComputeFingerprint() == spec.ComputeFingerprint());
  }
}

TEST_CASE("Model spec: every field changes the fingerprint, no two changes alike", "[unit]") {
  std::set<Fingerprint> seen{LlamaSpec().ComputeFingerprint()};
  std::size_t fields = 0;
  for (const auto& [field, value] : Fields(LlamaSpec())) {
    ModelSpec changed = LlamaSpec();
    KVM_REQUIRE_OK(SetField(changed, field, Changed(field, value)));
    INFO(field);
    CHECK(seen.insert(changed.ComputeFingerprint()).second);
    ++fields;
  }
  CHECK(fields == 16);
}

TEST_CASE("Model spec: a difference names exactly the field that differs, ours and theirs", "[unit]") {
  CHECK(Difference(LlamaSpec(), LlamaSpec()).empty());
  for (const auto& [field, value] : Fields(LlamaSpec())) {
    ModelSpec theirs = LlamaSpec();
    KVM_REQUIRE_OK(SetField(theirs, field, Changed(field, value)));
    const std::vector<ModelFieldDifference> differences = Difference(LlamaSpec(), theirs);
    INFO(field);
    REQUIRE(differences.size() == 1);
    CHECK(differences.front().field == field);
    CHECK(differences.front().ours == value);
    CHECK(differences.front().theirs == Changed(field, value));
  }
}

TEST_CASE("Model spec: several differences come in declaration order", "[unit]") {
  ModelSpec theirs = LlamaSpec();
  theirs.tp_size = 2;
  theirs.revision = "other";
  theirs.kv_dtype = "float16";
  const std::vector<ModelFieldDifference> differences = Difference(LlamaSpec(), theirs);
  REQUIRE(differences.size() == 3);
  CHECK(differences[0].field == "revision");
  CHECK(differences[1].field == "kv_dtype");
  CHECK(differences[2].field == "tp_size");
}

TEST_CASE("Model spec: Fields lists every member with its value", "[unit]") {
  ModelSpec rebuilt;
  for (const auto& [field, value] : Fields(LlamaSpec())) KVM_REQUIRE_OK(SetField(rebuilt, field, value));
  CHECK(rebuilt == LlamaSpec());
}

TEST_CASE("Model spec: Validate names a required field that is missing", "[unit]") {
  KVM_REQUIRE_OK(LlamaSpec().Validate());
  const std::set<std::string> required = {"model_id",  "kv_dtype",     "layout",  "num_layers", "num_kv_heads",
                                          "head_size", "block_tokens", "tp_size", "pp_size"};
  for (const auto& [field, value] : Fields(LlamaSpec())) {
    ModelSpec spec = LlamaSpec();
    if (!SetField(spec, field, "")) KVM_REQUIRE_OK(SetField(spec, field, "0"));
    INFO(field);
    if (required.count(field) != 0) {
      KVM_CHECK_ERROR(spec.Validate(), Errc::kInvalidArgument, field);
    } else {
      CHECK(spec.Validate());
    }
  }
}

TEST_CASE("Model spec: a field may be as long as its limit and no longer", "[unit]") {
  ModelSpec spec = LlamaSpec();
  spec.rope = std::string(ModelSpec::kMaxFieldBytes, 'r');
  KVM_REQUIRE_OK(spec.Validate());
  KVM_REQUIRE_OK(ModelSpec::FromCanonical(spec.Canonical()));
  spec.rope.push_back('r');
  KVM_CHECK_ERROR(spec.Validate(), Errc::kInvalidArgument, "rope");
  KVM_CHECK_ERROR(ModelSpec::FromCanonical(spec.Canonical()), Errc::kInvalidArgument, "rope");
}

TEST_CASE("Model spec: all fields together are limited", "[unit]") {
  ModelSpec spec = LlamaSpec();
  spec.rope = spec.kv_scales = spec.weights_digest = std::string(ModelSpec::kMaxFieldBytes, 'r');
  spec.quantization.clear();
  REQUIRE(spec.Canonical().size() < ModelSpec::kMaxCanonicalBytes + ModelSpec::kMaxFieldBytes);
  while (spec.Canonical().size() < ModelSpec::kMaxCanonicalBytes) spec.quantization.push_back('q');
  if (spec.Canonical().size() > ModelSpec::kMaxCanonicalBytes) spec.quantization.pop_back();
  KVM_REQUIRE_OK(spec.Validate());
  spec.quantization += "qq";
  KVM_CHECK_ERROR(spec.Validate(), Errc::kInvalidArgument, "together");
}

TEST_CASE("Model spec: SetField refuses unknown names and values that are no 32-bit numbers", "[unit]") {
  ModelSpec spec = LlamaSpec();
  KVM_CHECK_ERROR(SetField(spec, "modelid", "x"), Errc::kInvalidArgument, "modelid");
  KVM_CHECK_ERROR(SetField(spec, "", "x"), Errc::kInvalidArgument, "no field");
  for (const std::string bad : {"", "-1", "+1", " 1", "1 ", "0x10", "4294967296", "99999999999999999999", "1e3", "x"}) {
    INFO("'" << bad << "'");
    KVM_CHECK_ERROR(SetField(spec, "num_layers", bad), Errc::kInvalidArgument, "num_layers");
  }
  CHECK(spec == LlamaSpec());
  KVM_REQUIRE_OK(SetField(spec, "num_layers", "4294967295"));
  CHECK(spec.num_layers == 4294967295u);
}

TEST_CASE("Model spec: a canonical form cut anywhere is refused", "[unit]") {
  const std::string whole = LlamaSpec().Canonical();
  for (std::size_t length = 0; length < whole.size(); ++length) {
    INFO("first " << length << " bytes");
    CHECK_FALSE(ModelSpec::FromCanonical(whole.substr(0, length)));
  }
}

TEST_CASE("Model spec: a canonical form with a changed byte is refused or is another model", "[unit]") {
  const std::string whole = LlamaSpec().Canonical();
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (const char replacement : {'\0', '\n', '0', '9', ':', '=', 'a', '\xff'}) {
      if (whole[at] == replacement) continue;
      std::string damaged = whole;
      damaged[at] = replacement;
      const Result<ModelSpec> spec = ModelSpec::FromCanonical(damaged);
      INFO("byte " << at << " replaced by " << static_cast<int>(replacement));
      if (spec) CHECK((spec->Canonical() == damaged && *spec != LlamaSpec()));
    }
  }
}

TEST_CASE("Model spec: damaged canonical forms are refused, the place named", "[unit]") {
  const std::string whole = LlamaSpec().Canonical();
  KVM_CHECK_ERROR(ModelSpec::FromCanonical(whole + "x"), Errc::kInvalidArgument, "trailing");
  KVM_CHECK_ERROR(ModelSpec::FromCanonical(Replace(whole, "kvm.model.1", "kvm.model.2")), Errc::kInvalidArgument, "version");
  KVM_CHECK_ERROR(ModelSpec::FromCanonical(Replace(whole, "layout=3:NHD\n", "")), Errc::kInvalidArgument, "layout");
  KVM_CHECK_ERROR(ModelSpec::FromCanonical(Replace(whole, "layout=3:NHD\n", "layout=4:NHD\n")), Errc::kInvalidArgument, "layout");
  KVM_CHECK_ERROR(ModelSpec::FromCanonical(Replace(whole, "layout=3:NHD\n", "layout=2:NHD\n")), Errc::kInvalidArgument, "layout");
  KVM_CHECK_ERROR(ModelSpec::FromCanonical(Replace(whole, "layout=3:NHD\n", "layout=18446744073709551615:NHD\n")), Errc::kInvalidArgument,
                  "layout");
  KVM_CHECK_ERROR(ModelSpec::FromCanonical(Replace(whole, "layout=3:NHD\n", "layout=18446744073709551619:NHD\n")), Errc::kInvalidArgument,
                  "layout");
  KVM_CHECK_ERROR(ModelSpec::FromCanonical(Replace(whole, "num_layers=2:32\n", "num_layers=2:-1\n")), Errc::kInvalidArgument, "num_layers");
}

TEST_CASE("Model spec: a spec has one canonical form only", "[unit]") {
  const std::string whole = LlamaSpec().Canonical();
  KVM_CHECK_ERROR(ModelSpec::FromCanonical(Replace(whole, "layout=3:NHD\n", "layout=03:NHD\n")), Errc::kInvalidArgument, "layout");
  KVM_CHECK_ERROR(ModelSpec::FromCanonical(Replace(whole, "num_layers=2:32\n", "num_layers=3:032\n")), Errc::kInvalidArgument,
                  "num_layers");
}
