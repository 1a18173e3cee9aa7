// Number of open descriptors of a process, from /proc.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>

#include "tests/support/process/eventually.h"

namespace kvm::test {

// -1 if the process has ended. The descriptor that is used for counting is not counted.
inline int OpenFds(pid_t pid = 0) {
  int count = 0;
  std::error_code error;
  const std::string path = pid == 0 ? "/proc/self/fd" : "/proc/" + std::to_string(pid) + "/fd";
  std::filesystem::directory_iterator entries(path, error);
  if (error) return -1;
  for (; entries != std::filesystem::directory_iterator(); entries.increment(error)) ++count;
  return pid == 0 ? count - 1 : count;
}

// Once it has not changed for a tenth of a second.
inline int SettledFds(pid_t pid) {
  int last = OpenFds(pid);
  for (int same = 0; same < 10;) {
    SleepMs(10);
    const int now = OpenFds(pid);
    same = now == last ? same + 1 : 0;
    last = now;
  }
  return last;
}

}  // namespace kvm::test
