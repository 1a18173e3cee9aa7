// The processes that a kvctl started, and a kvctl that runs until it is told to stop.
#pragma once

#include <stdlib.h>
#include <unistd.h>

#include <sstream>
#include <string>
#include <vector>

#include "tests/support/kvmd/kvctl_sandbox.h"

namespace kvm::test {

// Processes whose parent is `pid`.
inline std::vector<pid_t> ChildrenOf(pid_t pid) {
  std::istringstream list(ReadFile("/proc/" + std::to_string(pid) + "/task/" + std::to_string(pid) + "/children"));
  std::vector<pid_t> children;
  for (pid_t child = 0; list >> child;) children.push_back(child);
  return children;
}

// Such processes whose command line contains `role`.
inline std::vector<pid_t> ChildrenOf(pid_t pid, const std::string& role) {
  std::vector<pid_t> children;
  for (const pid_t child : ChildrenOf(pid)) {
    if (ReadFile("/proc/" + std::to_string(child) + "/cmdline").find(role) != std::string::npos) children.push_back(child);
  }
  return children;
}

// Its output goes to the sandbox's file "log", and its TMPDIR is the sandbox's.
inline ctl::ChildProcess StartKvctl(const Sandbox& sandbox, const std::vector<std::string>& arguments) {
  ::setenv("TMPDIR", sandbox.Tmp().c_str(), 1);
  Result<ctl::ChildProcess> kvctl = ctl::ChildProcess::Start(Kvctl(), arguments, {.log_path = sandbox.path() / "log"});
  ::unsetenv("TMPDIR");
  REQUIRE(kvctl.has_value());
  return std::move(*kvctl);
}

}  // namespace kvm::test
