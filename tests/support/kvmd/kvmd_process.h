// The real kvmd on a socket of its own, in a directory of its own; killed at the end of the test.
// Its log is shown if the test fails.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "tests/support/process/child_process.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {

// Path of the binary under test.
std::string KvmdBinary();

class KvmdProcess {
 public:
  // Starts kvmd with `options` and waits until it accepts connections. `prefix`: a command that
  // becomes kvmd, whose command line follows.
  explicit KvmdProcess(std::vector<std::string> options = {}, std::vector<std::string> prefix = {});
  ~KvmdProcess();

  const TempDir& dir() const noexcept { return dir_; }
  std::string socket() const { return dir_ / "kvmd.sock"; }
  pid_t pid() const noexcept { return process_.pid(); }
  bool running() { return process_.running(); }
  int OpenFds() const;
  int SettledFds() const;  // the number once it has not changed for a tenth of a second
  std::string Log() const;

  void Kill();   // SIGKILL, as a crash would
  void Start();  // again, with the same options
  // Sends SIGTERM; returns how it ended, -1 and signal 0 if it did not end within ten seconds.
  ProcessEnd Stop();

 private:
  TempDir dir_;
  std::vector<std::string> options_, prefix_;
  ChildProcess process_;
};

// Calls `done` until it returns true or `timeout` has passed; returns its last result.
template <class Done>
bool Eventually(Done done, std::chrono::milliseconds timeout = std::chrono::seconds(10));

bool SleepMs(int ms);  // true

template <class Done>
bool Eventually(Done done, std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!done()) {
    if (std::chrono::steady_clock::now() >= deadline) return done();
    SleepMs(2);
  }
  return true;
}

}  // namespace kvm::test
