// Whether this test is built with sanitizers, for tests that leave a process too few resources for
// them: UBSan's check of an object's type opens a pipe, the shadow of AddressSanitizer and of
// ThreadSanitizer is memory. Both have allocators of their own.
#pragma once

#include "proto/base/sanitizers.h"

namespace kvm::test {

#if defined(KVM_ADDRESS_SANITIZER)
// Preset asan: AddressSanitizer and UBSan.
inline constexpr bool kAddressSanitized = true;
#else
inline constexpr bool kAddressSanitized = false;
#endif

#if defined(KVM_THREAD_SANITIZER)
inline constexpr bool kThreadSanitized = true;
#else
inline constexpr bool kThreadSanitized = false;
#endif

inline constexpr bool kSanitized = kAddressSanitized || kThreadSanitized;

}  // namespace kvm::test
