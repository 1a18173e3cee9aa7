#include "client/kvctl/support/program_output.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <sstream>

#include "client/kvctl/process/child_process.h"
#include "proto/base/unique_fd.h"

namespace kvm::ctl {

Result<ProgramOutput> OutputOf(const std::string& program, const std::vector<std::string>& arguments, std::chrono::milliseconds patience) {
  // Unlike a pipe, memory takes any amount while nothing reads it.
  const UniqueFd memory(::memfd_create("kvctl-output", MFD_CLOEXEC));
  if (!memory) return SystemError("memory for the output of " + program);
  Result<ChildProcess> started = ChildProcess::Start(program, arguments, {.log_path = "/proc/self/fd/" + std::to_string(memory.get())});
  if (!started) return started.error();
  if (!started->WaitFor(patience)) {
    started->Stop(std::chrono::milliseconds(0));
    return MakeError(Errc::kDeadlineExceeded, program + " did not end in time");
  }
  ProgramOutput out{started->Succeeded(), started->Ending(), {}};
  std::array<char, 65536> part;
  off_t at = 0;
  for (ssize_t size; (size = ::pread(memory.get(), part.data(), part.size(), at)) > 0; at += size)
    out.text.append(part.data(), static_cast<std::size_t>(size));
  return out;
}

std::string ProgramInPath(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::istringstream directories(path != nullptr ? path : "");
  for (std::string directory; std::getline(directories, directory, ':');) {
    std::string candidate = directory + "/" + name;
    if (!directory.empty() && ::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return "";
}

}  // namespace kvm::ctl
