// The real kvmd on a socket of its own, in a directory of its own; killed at the end of the test.
// Its log is shown if the test fails.
#pragma once

#include <string>
#include <vector>

#include "tests/support/kvmd/kvmd_home.h"
#include "tests/support/process/child_process.h"
#include "tests/support/process/eventually.h"

namespace kvm::test {

class KvmdProcess {
 public:
  // Starts kvmd with `options` and waits until it accepts connections. `prefix`: a command that
  // becomes kvmd, whose command line follows.
  explicit KvmdProcess(std::vector<std::string> options = {}, std::vector<std::string> prefix = {});

  const TempDir& dir() const noexcept { return home_.dir(); }
  std::string socket() const { return home_.socket(); }
  pid_t pid() const noexcept { return process_.pid(); }
  bool running() { return process_.running(); }
  int OpenFds() const;
  int SettledFds() const;  // once it has not changed for a tenth of a second
  std::string Log() const { return home_.Log(); }

  void Kill();   // SIGKILL, as a crash would
  void Start();  // again, with the same options
  // Sends SIGTERM; returns how it ended, -1 and signal 0 if it did not end within ten seconds.
  ProcessEnd Stop();

 private:
  KvmdHome home_;
  std::vector<std::string> options_, prefix_;
  ChildProcess process_;
};

}  // namespace kvm::test
