#include "tests/support/process/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <utility>

#include "tests/catch.h"

namespace kvm::test {
namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& arguments, const std::string& error_path) {
  ::signal(SIGPIPE, SIG_IGN);
  int input[2], output[2];
  REQUIRE(::pipe2(input, O_CLOEXEC) == 0);
  REQUIRE(::pipe2(output, O_CLOEXEC) == 0);
  const UniqueFd child_input(input[0]), child_output(output[1]);
  input_.Reset(input[1]);
  output_.Reset(output[0]);
  Result<ctl::ChildProcess> process =
      ctl::ChildProcess::Start(arguments.at(0), {arguments.begin() + 1, arguments.end()},
                               {.input = child_input.get(), .output = child_output.get(), .log_path = error_path, .own_group = false});
  KVM_REQUIRE_OK(process);
  process_ = std::move(*process);
}

ChildProcess ChildProcess::Self(const std::string& name, std::vector<std::string> arguments, const std::string& error_path) {
  std::vector<std::string> all{"/proc/self/exe", "--child", name};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return ChildProcess(all, error_path);
}

void ChildProcess::Signal(int signal) {
  if (running()) ::kill(pid(), signal);
}

std::optional<ProcessEnd> ChildProcess::Wait(std::chrono::milliseconds timeout) {
  if (pid() <= 0 || !process_.WaitFor(timeout)) return std::nullopt;
  const int status = process_.wait_status();
  return WIFSIGNALED(status) ? ProcessEnd{WTERMSIG(status), -1} : ProcessEnd{0, WEXITSTATUS(status)};
}

bool ChildProcess::WriteLine(std::string_view line) {
  std::string bytes = std::string(line) + "\n";
  for (std::size_t sent = 0; sent < bytes.size();) {
    const ssize_t step = ::write(input_.get(), bytes.data() + sent, bytes.size() - sent);
    if (step < 0 && errno != EINTR) return false;
    if (step > 0) sent += static_cast<std::size_t>(step);
  }
  return true;
}

std::optional<std::string> ChildProcess::ReadLine(std::chrono::milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  for (;;) {
    if (const std::size_t end = unread_.find('\n'); end != std::string::npos) {
      std::string line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      return line;
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd wait{output_.get(), POLLIN, 0};
    if (left <= 0 || ::poll(&wait, 1, static_cast<int>(left)) == 0) return std::nullopt;
    char chunk[4096];
    const ssize_t got = ::read(output_.get(), chunk, sizeof(chunk));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return std::nullopt;
    unread_.append(chunk, static_cast<std::size_t>(got));
  }
}

}  // namespace kvm::test
