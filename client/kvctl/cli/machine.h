// Facts about the machine that a benchmark's figures depend on.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

namespace kvm::ctl {

struct MachineFacts {
  std::string cpu;     // "unknown" where the kernel does not say
  unsigned cores = 0;  // that this process may use
  std::string kernel;
  std::uint64_t memory_bytes = 0;
};

MachineFacts ReadMachineFacts();

// Resident set of a process, from /proc; nothing if it is gone or not ours to see.
std::optional<std::uint64_t> ResidentBytes(pid_t pid);

}  // namespace kvm::ctl
