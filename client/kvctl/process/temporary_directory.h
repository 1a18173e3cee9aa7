// A directory for the files of one command.
#pragma once

#include <string>

#include "kvm/error.h"

namespace kvm::ctl {

// A new, empty one under TMPDIR, or /tmp without it; the caller removes it. kInvalidArgument: it
// can't be made. `purpose` goes into the message: "make a directory " + purpose + "under …".
[[nodiscard]] Result<std::string> MakeTemporaryDirectory(const std::string& purpose = "");

}  // namespace kvm::ctl
