// SIGINT, SIGTERM and SIGHUP as a flag, so that whatever was started is stopped by its owner's destructor.
#pragma once

namespace kvm::ctl {

// From here on these signals set the flag (once; a second one ends the process as usual).
void CatchInterrupts();
bool Interrupted() noexcept;

}  // namespace kvm::ctl
