#include "proto/base/standard_fds.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace kvm {

void OpenStandardFds() noexcept {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    // open() returns the lowest free number, which is `fd`, since all lower ones are open by now.
    if (::open("/dev/null", O_RDWR) != fd) return;
  }
}

}  // namespace kvm
