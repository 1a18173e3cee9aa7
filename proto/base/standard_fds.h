// Opens descriptors 0 to 2 in a process that was started without some of them.
#pragma once

namespace kvm {

// Opens /dev/null in place of each that is closed. Otherwise the next file or socket that the
// process opens would become standard error, and get everything that is written there. To be called
// first in main.
void OpenStandardFds() noexcept;

}  // namespace kvm
