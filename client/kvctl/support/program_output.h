// What a program says.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "kvm/error.h"

namespace kvm::ctl {

struct ProgramOutput {
  bool succeeded = false;
  std::string ending;  // "exited with 3"
  std::string text;    // standard output and standard error, as they came
};

// Runs `program` (a path) until it ends. kNotFound: there is none. kDeadlineExceeded: it was ended
// after `patience`.
[[nodiscard]] Result<ProgramOutput> OutputOf(const std::string& program, const std::vector<std::string>& arguments,
                                             std::chrono::milliseconds patience);

// The first program of that name in PATH; empty: there is none.
std::string ProgramInPath(const std::string& name);

}  // namespace kvm::ctl
