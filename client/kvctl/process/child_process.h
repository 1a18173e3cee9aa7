// ChildProcess: a process that kvctl starts and stops. The destructor stops it, and if kvctl is
// killed, the kernel does (PR_SET_PDEATHSIG). It has a process group of its own, so that Ctrl-C
// reaches only kvctl, which then stops its children in order.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "kvm/error.h"

namespace kvm::ctl {

class ChildProcess {
 public:
  ChildProcess() = default;
  // `keep_fd`: a descriptor that stays open in the child, under the same number; -1 for none.
  // `stderr_path`: file that takes its stdout and stderr; empty: kvctl's own.
  // kNotFound: no such program. kSystem: fork failed.
  [[nodiscard]] static Result<ChildProcess> Start(const std::string& program, const std::vector<std::string>& arguments, int keep_fd,
                                                  const std::string& stderr_path);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  pid_t pid() const noexcept { return pid_; }
  // True until it has ended; keeps its exit status.
  bool Running();
  // Waits, without a signal, until the process ends; false if `timeout` has passed.
  bool WaitFor(std::chrono::milliseconds timeout);
  // Sends SIGTERM, and SIGKILL after `grace`. On return the process has ended.
  void Stop(std::chrono::milliseconds grace);
  // Whether its exit status is 0; valid once it has ended.
  bool Succeeded() const noexcept;
  std::string Ending() const;  // "exited with 3", "killed by signal 9 (Killed)"

 private:
  pid_t pid_ = -1;
  bool ended_ = false;
  int wait_status_ = 0;
};

// The path of the running binary, to start it again or a program beside it.
[[nodiscard]] Result<std::string> OwnBinary();

}  // namespace kvm::ctl
