// Checks that a test can switch off, to show that they are what keeps wrong bytes out: a test that
// finds no wrong byte with a check, and finds some without it, is one that can fail.
//
// KVM_FAULT_SWITCH(name) is false unless KVM_FAULT_POINTS is defined, which only the test suite's
// build does, and the environment variable KVM_FAULT_SWITCH is that name.
#pragma once

#if defined(KVM_FAULT_POINTS)

#include <cstdlib>
#include <string_view>

namespace kvm {

inline bool FaultSwitchIsOn(std::string_view name) noexcept {
  static const char* const on = std::getenv("KVM_FAULT_SWITCH");
  return on != nullptr && name == on;
}

}  // namespace kvm

#define KVM_FAULT_SWITCH(name) ::kvm::FaultSwitchIsOn(#name)

#else

#define KVM_FAULT_SWITCH(name) false

#endif
