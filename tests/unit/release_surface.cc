// Choices that a release build must not offer. A test compiles this file with a release build's
// definitions, and does not link it.
#include "cuda/memory_backend.h"
#include "cuda/plan/copy_policy.h"

namespace {

template <class Request>
concept ChoosesValidation = requires(Request request) {
  request.validation;
};
template <class Limits>
concept ChoosesKernel = requires(Limits limits) {
  limits.forced;
};

// Tests that must find wrong bytes check against a table of their own that stands still
// (tests/support/data/standing_generations.h).
static_assert(!ChoosesValidation<kvm::ImportRequest>, "an import can leave its checks out");
static_assert(!ChoosesKernel<kvm::CopyLimits>, "a caller can force a kernel");

}  // namespace
