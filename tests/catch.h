// What each test includes: Catch2, and what it needs to show the project's values and errors.
//
// KVM_SKIP("why") leaves a test case that can't run here. It prints "SKIPPED: why", which CTest
// turns into "Skipped" (SKIP_REGULAR_EXPRESSION, tests/CMakeLists.txt), so that a skip is seen and
// never counts as a pass. Call it at the top level of a TEST_CASE: with Catch2 2.13 it returns.
#pragma once

#include "kvm/block_key.h"
#include "kvm/error.h"
#include "tests/outside_headers.h"

#ifdef SKIP
#define KVM_SKIP(why)                               \
  do {                                              \
    std::cout << "SKIPPED: " << (why) << std::endl; \
    SKIP(why);                                      \
  } while (false)
#else
#define KVM_SKIP(why)                               \
  do {                                              \
    std::cout << "SKIPPED: " << (why) << std::endl; \
    return;                                         \
  } while (false)
#endif

// REQUIRE for a Result or Status: a failure shows the error's text.
#define KVM_REQUIRE_OK(...)                                                                           \
  do {                                                                                                \
    const auto& kvm_outcome = (__VA_ARGS__);                                                          \
    INFO(#__VA_ARGS__ << ": " << (kvm_outcome ? std::string("ok") : kvm_outcome.error().ToString())); \
    REQUIRE(static_cast<bool>(kvm_outcome));                                                          \
  } while (false)

// CHECK that an operation failed with `code` and that its message contains `text`.
#define KVM_CHECK_ERROR(outcome, expected_code, text)                                 \
  do {                                                                                \
    const auto& kvm_outcome = (outcome);                                              \
    CHECK_FALSE(static_cast<bool>(kvm_outcome));                                      \
    if (!kvm_outcome) {                                                               \
      INFO(#outcome << ": " << kvm_outcome.error().ToString());                       \
      CHECK(kvm::ErrcName(kvm_outcome.error().code) == kvm::ErrcName(expected_code)); \
      CHECK(kvm_outcome.error().message.find(text) != std::string::npos);             \
    }                                                                                 \
  } while (false)

namespace Catch {
template <>
struct StringMaker<kvm::BlockKey> {
  static std::string convert(const kvm::BlockKey& key) { return key.ToHex(); }
};
// Boost's operator<< for results needs one for the value as well.
template <class T>
struct StringMaker<boost::system::result<T, kvm::Error>> {
  static std::string convert(const kvm::Result<T>& result) { return result ? "ok" : "error: " + result.error().ToString(); }
};
template <>
struct StringMaker<kvm::Fingerprint> {
  static std::string convert(const kvm::Fingerprint& fingerprint) { return fingerprint.ToHex(); }
};
}  // namespace Catch
