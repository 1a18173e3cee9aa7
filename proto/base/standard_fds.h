// Descriptors 0 to 2 of a process that was started without some of them.
#pragma once

namespace kvm {

// Opens /dev/null in place of each that is closed. Otherwise the next file or socket that is opened becomes standard error,
// and gets whatever is written there. First thing in main.
void OpenStandardFds() noexcept;

}  // namespace kvm
