#include "tests/support/process/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <thread>
#include <utility>

#include "tests/catch.h"

namespace kvm::test {
namespace {

using Clock = std::chrono::steady_clock;

// Between fork and exec: system calls only.
[[noreturn]] void Exec(const std::vector<char*>& arguments, int input, int output, int error) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(input, STDIN_FILENO);
  ::dup2(output, STDOUT_FILENO);
  if (error >= 0) ::dup2(error, STDERR_FILENO);
  ::execv(arguments[0], arguments.data());
  ::_exit(127);
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& arguments, const std::string& error_path) {
  ::signal(SIGPIPE, SIG_IGN);
  int input[2], output[2];
  REQUIRE(::pipe2(input, O_CLOEXEC) == 0);
  REQUIRE(::pipe2(output, O_CLOEXEC) == 0);
  const UniqueFd child_input(input[0]), child_output(output[1]);
  input_.Reset(input[1]);
  output_.Reset(output[0]);
  UniqueFd error;
  if (!error_path.empty()) {
    error.Reset(::open(error_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    REQUIRE(error);
  }
  std::vector<char*> raw;
  for (const std::string& argument : arguments) raw.push_back(const_cast<char*>(argument.c_str()));
  raw.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) Exec(raw, child_input.get(), child_output.get(), error.get());
  REQUIRE(pid_ > 0);
}

ChildProcess ChildProcess::Self(const std::string& name, std::vector<std::string> arguments, const std::string& error_path) {
  std::vector<std::string> all{"/proc/self/exe", "--child", name};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return ChildProcess(all, error_path);
}

ChildProcess::~ChildProcess() { Kill(); }

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      end_(other.end_),
      input_(std::move(other.input_)),
      output_(std::move(other.output_)),
      unread_(std::move(other.unread_)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this == &other) return *this;
  Kill();
  pid_ = std::exchange(other.pid_, -1);
  end_ = other.end_;
  input_ = std::move(other.input_);
  output_ = std::move(other.output_);
  unread_ = std::move(other.unread_);
  return *this;
}

bool ChildProcess::running() { return pid_ > 0 && !Wait(std::chrono::milliseconds(0)); }

void ChildProcess::Signal(int signal) const {
  if (pid_ > 0 && !end_) ::kill(pid_, signal);
}

std::optional<ProcessEnd> ChildProcess::Wait(std::chrono::milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  while (pid_ > 0 && !end_) {
    int status = 0;
    if (::waitpid(pid_, &status, WNOHANG) == pid_) {
      end_ = WIFSIGNALED(status) ? ProcessEnd{WTERMSIG(status), -1} : ProcessEnd{0, WEXITSTATUS(status)};
      break;
    }
    if (Clock::now() >= deadline) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return end_;
}

void ChildProcess::Kill() {
  if (pid_ <= 0 || end_) return;
  ::kill(pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) continue;
  end_ = WIFSIGNALED(status) ? ProcessEnd{WTERMSIG(status), -1} : ProcessEnd{0, WEXITSTATUS(status)};
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
