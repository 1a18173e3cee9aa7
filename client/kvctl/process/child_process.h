// A process that this one started and stops again: on destruction at the latest, and by the kernel
// (PR_SET_PDEATHSIG) if this process is killed.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "kvm/error.h"

namespace kvm::ctl {

// What a child has of its parent's.
struct ChildStreams {
  int keep_fd = -1;             // stays open in the child, under the same number; -1: none
  int input = -1, output = -1;  // its stdin and stdout; -1: its parent's
  // File that takes its stderr and, unless there is `output`, its stdout; empty: its parent's
  std::string log_path{};
  // A process group of its own, so that Ctrl-C reaches its parent alone, which then stops what it
  // started in order; and the signals that end a process do so, whatever its parent does with them.
  bool own_group = true;
};

class ChildProcess {
 public:
  ChildProcess() = default;
  // kNotFound: no such program. kSystem: fork failed.
  [[nodiscard]] static Result<ChildProcess> Start(const std::string& program, const std::vector<std::string>& arguments,
                                                  const ChildStreams& streams = {});
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  pid_t pid() const noexcept { return pid_; }
  // True until it has ended; keeps its exit status.
  bool Running();
  // Waits, without a signal, until the process ends; false if `timeout` has passed.
  bool WaitFor(std::chrono::milliseconds timeout);
  // SIGTERM, then after `grace` SIGKILL; with a grace of 0, SIGKILL at once. Afterwards it has
  // ended.
  void Stop(std::chrono::milliseconds grace);
  // Whether its exit status is 0; valid once it has ended.
  bool Succeeded() const noexcept;
  // "exited with 3", "killed by signal 9 (Killed)"
  std::string Ending() const;
  // As waitpid's; meaningful once it has ended
  int wait_status() const noexcept { return wait_status_; }

 private:
  pid_t pid_ = -1;
  bool ended_ = false;
  int wait_status_ = 0;
};

// The path of the running binary, to start it again or a program beside it.
[[nodiscard]] Result<std::string> OwnBinary();

}  // namespace kvm::ctl
