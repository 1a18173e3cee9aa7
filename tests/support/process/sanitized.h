// Whether this test is built with AddressSanitizer and UBSan, for tests that leave a process too
// few resources for the sanitizers: UBSan's check of an object's type opens a pipe,
// AddressSanitizer's shadow is memory.
#pragma once

namespace kvm::test {

#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace kvm::test
