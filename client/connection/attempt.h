// Attempt: calls a function on a thread of the library's own, where an exception would end the
// caller's process. The only ones that get so far are of a lack of memory.
#pragma once

#include <exception>

namespace kvm {

// False: it has thrown.
template <class Function>
bool Attempt(Function&& function) noexcept {
  try {
    function();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace kvm
