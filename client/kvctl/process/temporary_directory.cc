#include "client/kvctl/process/temporary_directory.h"

#include <cstdlib>

namespace kvm::ctl {

Result<std::string> MakeTemporaryDirectory(const std::string& purpose) {
  const char* base = std::getenv("TMPDIR");
  std::string pattern = std::string(base != nullptr && *base != '\0' ? base : "/tmp") + "/kvctl-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) {
    Error error = SystemError("make a directory " + purpose + "under TMPDIR, " + pattern);
    error.code = Errc::kInvalidArgument;
    return error;
  }
  return pattern;
}

}  // namespace kvm::ctl
