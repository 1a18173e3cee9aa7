// kvmd's configuration file: arbitrary text is read, or refused with a reason.
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/system/config.h"
#include "proto/base/unique_fd.h"
#include "tests/fuzz/targets.h"

namespace kvm::fuzz {

void ConfigFileTarget(Bytes input) {
  const UniqueFd file(::memfd_create("kvmd.toml", MFD_CLOEXEC));
  if (!file || ::write(file.get(), input.data(), input.size()) != static_cast<ssize_t>(input.size())) return;
  const Result<daemon::LogLevel> level = daemon::ReadLogLevel("/proc/self/fd/" + std::to_string(file.get()));
  if (!level && level.error().message.empty()) Broken("a file that is refused is refused for a reason");
}

std::vector<std::string> ConfigFileSeeds() {
  return {"max-entries = 1000000\nlog-level = \"debug\"\nhost-cache = \"64G\"\ndomain-mode = \"gid\"\n",
          "admins = [1, 2]\n[domain.team-a]\nuids = [2001, 2002]\nmax-entries = 1000\nmax-host-cache = \"1G\"\norphans = false\n"
          "[domain.web]\ngids = [300]\nadmins = [7]\n",
          "# a comment\nsocket = '/run/kvmd.sock'\nsocket-mode = \"0660\"\n"};
}

}  // namespace kvm::fuzz
