// A child process with pipes on its standard input and output. The destructor kills and reaps it,
// and the kernel kills it if the test dies first, so that no process outlives its test. Every wait
// is bounded.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/kvctl/process/child_process.h"
#include "proto/base/unique_fd.h"

namespace kvm::test {

// How a process ended: by `signal`, or with `code`.
struct ProcessEnd {
  int signal = 0;
  int code = -1;
  bool clean() const noexcept { return signal == 0 && code == 0; }
};

class ChildProcess {
 public:
  ChildProcess() = default;
  // Starts `arguments` (the first one names the binary). Its standard error goes to the file
  // `error_path`, appended; empty: to the test's own.
  explicit ChildProcess(const std::vector<std::string>& arguments, const std::string& error_path = {});
  // The child `name` of this binary (support/child_main.h).
  static ChildProcess Self(const std::string& name, std::vector<std::string> arguments = {}, const std::string& error_path = {});
  ~ChildProcess() { Kill(); }
  ChildProcess(ChildProcess&& other) noexcept = default;
  ChildProcess& operator=(ChildProcess&& other) noexcept = default;

  pid_t pid() const noexcept { return process_.pid(); }
  bool running() { return process_.Running(); }
  void Signal(int signal);
  // Empty: still running after `timeout`.
  std::optional<ProcessEnd> Wait(std::chrono::milliseconds timeout);
  // SIGKILL, and waits until it is gone.
  void Kill() { process_.Stop(std::chrono::milliseconds(0)); }

  void CloseInput() { input_.Reset(); }
  // False if it does not read any more.
  bool WriteLine(std::string_view line);
  // Empty if no complete line came within `timeout`, or it has closed its output.
  std::optional<std::string> ReadLine(std::chrono::milliseconds timeout);

 private:
  ctl::ChildProcess process_;
  UniqueFd input_, output_;
  std::string unread_;
};

}  // namespace kvm::test
