// Canonical model specs: what is accepted has one canonical form, the bytes that were read.
#include "kvm/model_spec.h"

#include "tests/fuzz/targets.h"
#include "tests/support/data/model_specs.h"

namespace kvm::fuzz {

void ModelSpecTarget(Bytes input) {
  const std::string_view text(reinterpret_cast<const char*>(input.data()), input.size());
  const Result<ModelSpec> spec = ModelSpec::FromCanonical(text);
  if (!spec) {
    if (spec.error().message.empty()) Broken("a refused spec says why");
    return;
  }
  if (spec->Canonical() != text) Broken("a spec has one canonical form");
  const Status valid = spec->Validate();
  if (!valid && valid.error().code != Errc::kInvalidArgument) Broken("an invalid spec is an invalid argument");
  if (!Difference(*spec, *spec).empty()) Broken("a spec does not differ from itself");
}

std::vector<std::string> ModelSpecSeeds() {
  return {test::LlamaSpec().Canonical(), test::AwkwardSpec().Canonical(), ModelSpec{}.Canonical()};
}

}  // namespace kvm::fuzz
