#include "client/kvctl/process/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <thread>
#include <utility>

#include "proto/base/unique_fd.h"

namespace kvm::ctl {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int kCannotExec = 127;

// What the child's descriptors become; -1: it has its parent's.
struct Descriptors {
  int keep, input, output, error;
};

// In the child, between fork and exec: async-signal-safe calls only.
[[noreturn]] void BecomeProgram(const char* program, char* const* argv, const Descriptors& fds, bool own_group, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(kCannotExec);  // it died before the line above
  if (own_group) {
    ::setpgid(0, 0);
    struct sigaction standard {};
    standard.sa_handler = SIG_DFL;
    for (const int signal : {SIGINT, SIGTERM, SIGPIPE}) ::sigaction(signal, &standard, nullptr);
  }
  if (fds.keep >= 0) ::fcntl(fds.keep, F_SETFD, 0);
  if (fds.input >= 0) ::dup2(fds.input, STDIN_FILENO);
  if (fds.output >= 0) ::dup2(fds.output, STDOUT_FILENO);
  if (fds.error >= 0) ::dup2(fds.error, STDERR_FILENO);
  ::execv(program, argv);
  ::_exit(kCannotExec);
}

}  // namespace

Result<ChildProcess> ChildProcess::Start(const std::string& program, const std::vector<std::string>& arguments,
                                         const ChildStreams& streams) {
  if (::access(program.c_str(), X_OK) != 0) {
    Error error = SystemError("start " + program);
    error.code = Errc::kNotFound;
    return error;
  }
  UniqueFd log;
  if (!streams.log_path.empty()) {
    log.Reset(::open(streams.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (!log) return SystemError("open " + streams.log_path);
  }
  const Descriptors fds{streams.keep_fd, streams.input, streams.output >= 0 ? streams.output : log.get(), log.get()};
  std::vector<char*> argv{const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return SystemError("fork");
  if (pid == 0) BecomeProgram(program.c_str(), argv.data(), fds, streams.own_group, parent);
  ChildProcess child;
  child.pid_ = pid;
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), ended_(other.ended_), wait_status_(other.wait_status_) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this == &other) return *this;
  Stop(milliseconds(0));
  pid_ = std::exchange(other.pid_, -1);
  ended_ = other.ended_;
  wait_status_ = other.wait_status_;
  return *this;
}

ChildProcess::~ChildProcess() { Stop(milliseconds(2000)); }

bool ChildProcess::Running() {
  if (pid_ < 0 || ended_) return false;
  const pid_t waited = ::waitpid(pid_, &wait_status_, WNOHANG);
  ended_ = waited == pid_ || (waited < 0 && errno == ECHILD);
  return !ended_;
}

bool ChildProcess::WaitFor(milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  while (Running()) {
    if (steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(milliseconds(2));
  }
  return true;
}

void ChildProcess::Stop(milliseconds grace) {
  if (!Running()) return;
  if (grace > milliseconds(0)) {
    ::kill(pid_, SIGTERM);
    if (WaitFor(grace)) return;
  }
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, &wait_status_, 0) < 0 && errno == EINTR) {
  }
  ended_ = true;
}

bool ChildProcess::Succeeded() const noexcept { return ended_ && WIFEXITED(wait_status_) && WEXITSTATUS(wait_status_) == 0; }

std::string ChildProcess::Ending() const {
  if (!ended_) return "is running";
  if (WIFSIGNALED(wait_status_)) {
    const int signal = WTERMSIG(wait_status_);
    return "killed by signal " + std::to_string(signal) + " (" + ::strsignal(signal) + ")";
  }
  return "exited with " + std::to_string(WEXITSTATUS(wait_status_));
}

Result<std::string> OwnBinary() {
  std::array<char, PATH_MAX> path;
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  if (length <= 0) return SystemError("readlink /proc/self/exe");
  return std::string(path.data(), static_cast<std::size_t>(length));
}

}  // namespace kvm::ctl
