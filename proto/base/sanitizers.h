// Which sanitizers this is built with: g++ says so with macros, clang by __has_feature.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define KVM_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KVM_ADDRESS_SANITIZER 1
#endif
#endif

#if defined(__SANITIZE_THREAD__)
#define KVM_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define KVM_THREAD_SANITIZER 1
#endif
#endif

// For a function that races on purpose, which its comment explains. Not inlined, since the
// attribute would be lost.
#if defined(KVM_THREAD_SANITIZER)
#define KVM_RACES_ON_PURPOSE __attribute__((no_sanitize("thread"), noinline))
#else
#define KVM_RACES_ON_PURPOSE
#endif
