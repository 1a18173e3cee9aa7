// Runs a function in a forked child, for code that must end in a signal, and for memory that is
// shared across fork.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

namespace kvm::test {

struct ChildEnd {
  int signal = 0;      // the signal that killed it; 0 if it exited
  int exit_code = -1;  // -1 if it was killed
};

// The child runs `body`, which returns its exit code. Faults kill it, whatever handlers the test
// runner or a sanitizer has installed. A minute at most.
template <class Body>
ChildEnd RunInChild(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (const int fault : {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE, SIGTERM, SIGALRM}) std::signal(fault, SIG_DFL);
    ::alarm(60);
    ::_exit(body());
  }
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) return {};
  if (WIFSIGNALED(status)) return {WTERMSIG(status), -1};
  return {0, WEXITSTATUS(status)};
}

}  // namespace kvm::test
