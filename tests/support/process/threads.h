// Threads of this process, from /proc.
#pragma once

#include <cstdint>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/process/read_file.h"

namespace kvm::test {

struct ThreadState {
  bool asleep = false;
  std::uint64_t waits = 0;  // how often it has gone to sleep
};

// Of this process's threads that have this name, as top shows it.
inline std::vector<ThreadState> ThreadsNamed(const std::string& name) {
  std::vector<ThreadState> out;
  std::error_code error;
  for (std::filesystem::directory_iterator entries("/proc/self/task", error), end; !error && entries != end; entries.increment(error)) {
    if (ReadFile(entries->path() / "comm") != name + "\n") continue;
    std::istringstream lines(ReadFile(entries->path() / "status"));
    ThreadState thread;
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("State:")) thread.asleep = line.find('S', 6) != line.npos;
      if (line.starts_with("voluntary_ctxt_switches:")) thread.waits = std::stoull(line.substr(line.find(':') + 1));
    }
    out.push_back(thread);
  }
  return out;
}

}  // namespace kvm::test
