// A process that kvctl started and stops again: on destruction at the latest, and by the kernel
// (PR_SET_PDEATHSIG) if kvctl itself is killed. It has a process group of its own, so that Ctrl-C
// reaches kvctl alone, which then stops what it started in order.
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
  // True until it has ended; its end is remembered.
  bool Running();
  // Waits for its end by itself; false if the deadline passed.
  bool WaitFor(std::chrono::milliseconds timeout);
  // SIGTERM, then after `grace` SIGKILL. Afterwards it has ended.
  void Stop(std::chrono::milliseconds grace);
  // Exit status 0; meaningful once it has ended.
  bool Succeeded() const noexcept;
  std::string Ending() const;  // "exited with 3", "killed by signal 9 (Killed)"

 private:
  pid_t pid_ = -1;
  bool ended_ = false;
  int wait_status_ = 0;
};

// Path of the running binary, for starting another one of it or a program next to it.
[[nodiscard]] Result<std::string> OwnBinary();

}  // namespace kvm::ctl
