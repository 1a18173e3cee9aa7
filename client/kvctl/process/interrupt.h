// Turns SIGINT, SIGTERM and SIGHUP into a flag, so that commands return normally and destructors
// stop the processes that were started.
#pragma once

namespace kvm::ctl {

// From here on, the first of these signals sets the flag; a second one ends the process as usual.
void CatchInterrupts();
bool Interrupted() noexcept;

}  // namespace kvm::ctl
