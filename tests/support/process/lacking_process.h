// A child of the test whose main thread is to lack memory, and what both see of it.
#pragma once

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <exception>

#include "tests/catch.h"

namespace kvm::test {

class LackingProcess {
 public:
  // The child runs `body(failed)`, where `failed` is shared, and ends. An exception ends it, too.
  template <class Body>
  explicit LackingProcess(Body body)
      : failed_(static_cast<bool*>(::mmap(nullptr, sizeof(bool), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    REQUIRE(static_cast<void*>(failed_) != MAP_FAILED);
    pid_ = ::fork();
    if (pid_ != 0) return;
    std::signal(SIGTERM, SIG_DFL);
    std::set_terminate([] { ::_exit(1); });
    [&]() noexcept { body(failed_); }();
    ::_exit(0);
  }
  LackingProcess(const LackingProcess&) = delete;
  LackingProcess& operator=(const LackingProcess&) = delete;
  ~LackingProcess() {
    if (!Ended()) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::munmap(failed_, sizeof(bool));
  }

  bool Ended() {
    ended_ = ended_ || ::waitpid(pid_, nullptr, WNOHANG) != 0;
    return ended_;
  }
  bool failed() const { return *static_cast<const volatile bool*>(failed_); }

 private:
  bool* const failed_;
  pid_t pid_ = 0;
  bool ended_ = false;
};

}  // namespace kvm::test
