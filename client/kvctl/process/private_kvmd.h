// PrivateKvmd: a kvmd process for the duration of one command, with a socket in a temporary
// directory. The destructor ends the process and removes the directory, also after errors and
// interrupts.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "client/kvctl/process/child_process.h"

namespace kvm::ctl {

// kvmd's program: `given`, or if that is empty the one beside this program, or of PATH. kNotFound.
[[nodiscard]] Result<std::string> FindKvmd(const std::string& given);

struct PrivateKvmdOptions {
  std::string program;  // empty: kvmd next to this binary, else from PATH
  std::uint64_t max_entries = 1'000'000;
  std::vector<std::string> arguments;  // additional arguments
};

class PrivateKvmd {
 public:
  PrivateKvmd() = default;
  // Returns once kvmd answers. kNotFound: no kvmd program. kUnavailable: kvmd ended, or did not
  // answer within ten seconds; the message has its last log line. kCancelled: interrupted.
  [[nodiscard]] static Result<PrivateKvmd> Start(const PrivateKvmdOptions& options);
  PrivateKvmd(PrivateKvmd&& other) noexcept;
  PrivateKvmd& operator=(PrivateKvmd&& other) noexcept;
  ~PrivateKvmd();

  const std::string& socket() const noexcept { return socket_; }
  pid_t pid() const noexcept { return process_.pid(); }
  // Sends SIGTERM and removes the directory. An error if kvmd had died before, or its exit status
  // is not 0.
  [[nodiscard]] Status Stop();

 private:
  std::string LastLogLine() const;

  ChildProcess process_;
  std::string directory_, socket_;
};

}  // namespace kvm::ctl
