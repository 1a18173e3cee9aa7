// A kvmd for the time of one command: its own process, its own socket in a directory of its own, both
// gone when this object goes, also on errors and interrupts.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "client/kvctl/process/child_process.h"

namespace kvm::ctl {

struct PrivateKvmdOptions {
  std::string program;  // empty: kvmd next to this binary, else from PATH
  std::uint64_t max_entries = 1'000'000;
  std::vector<std::string> arguments;  // further ones
};

class PrivateKvmd {
 public:
  PrivateKvmd() = default;
  // Returns once it answers. kNotFound: no kvmd program. kUnavailable: it ended or did not answer within
  // ten seconds; the message has its last log line. kCancelled: interrupted.
  [[nodiscard]] static Result<PrivateKvmd> Start(const PrivateKvmdOptions& options);
  PrivateKvmd(PrivateKvmd&& other) noexcept;
  PrivateKvmd& operator=(PrivateKvmd&& other) noexcept;
  ~PrivateKvmd();

  const std::string& socket() const noexcept { return socket_; }
  pid_t pid() const noexcept { return process_.pid(); }
  // SIGTERM, and the directory removed. An error if it had died or did not end well.
  [[nodiscard]] Status Stop();

 private:
  std::string LastLogLine() const;

  ChildProcess process_;
  std::string directory_, socket_;
};

}  // namespace kvm::ctl
