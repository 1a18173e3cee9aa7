// Facts about the machine that a benchmark's figures depend on.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

namespace kvm::ctl {

struct MachineFacts {
  std::string cpu;     // "unknown" if the kernel does not tell
  unsigned cores = 0;  // that this process may use
  std::string kernel;
  std::uint64_t memory_bytes = 0;
};

MachineFacts ReadMachineFacts();

// The resident set of a process, from /proc; empty if the process has ended or this user may not
// see it.
std::optional<std::uint64_t> ResidentBytes(pid_t pid);

}  // namespace kvm::ctl
