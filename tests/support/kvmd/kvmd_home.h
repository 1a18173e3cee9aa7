// Where a test's kvmd lives: a directory with its socket and its log, and the command line that
// every one is started with. A test starts a kvmd by
//   KvmdProcess   the program, as a user starts it
//   Supervisor    the program, as a service manager starts it: socket passed, descriptors stored
//                 over its death
//   ServerRunner  the server in the test's own process (unit tests)
#pragma once

#include <string>
#include <vector>

#include "tests/support/process/temp_dir.h"

namespace kvm::test {

// Path of the binary under test.
std::string KvmdBinary();

class KvmdHome {
 public:
  KvmdHome() = default;
  ~KvmdHome();  // shows the log if the test has failed

  const TempDir& dir() const noexcept { return dir_; }
  std::string socket() const { return dir_ / "kvmd.sock"; }
  std::string log_path() const { return dir_ / "kvmd.log"; }
  std::string Log() const;
  // Of a kvmd with `options`: with small tables, so that a test starts it in milliseconds, unless
  // they say otherwise.
  std::vector<std::string> CommandLine(const std::vector<std::string>& options) const;

 private:
  TempDir dir_;
};

}  // namespace kvm::test
