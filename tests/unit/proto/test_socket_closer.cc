// How many threads that can't end a SocketCloser leaves: a tracer keeps each where it ends.
#include "proto/base/socket_closer.h"

#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/support/process/eventually.h"

namespace kvm {
namespace {

using namespace std::chrono_literals;
using test::Eventually;

// Above those that a closing thread receives, so that only the process's own table has it.
constexpr int kCommands = 400;

// Gives its closer a connection for each byte that it reads. Ends with an error if there are no
// closing threads.
int TakeAsTold() {
  SocketCloser closer;
  if (!closer.Start()) return 1;
  for (char command; ::read(kCommands, &command, 1) == 1;) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return 1;
    UniqueFd connection(ends[0]);
    ::close(ends[1]);
    if (!closer.Take(connection)) return 1;
  }
  return 0;
}

// A process that does so, and that this one traces: its threads with a table of their own stop when
// they end, until they are released.
class TracedCloser {
 public:
  TracedCloser() {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const UniqueFd commands(ends[0]);
    tell_.Reset(ends[1]);
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    static_cast<void>(::setpgid(pid_, 0));  // a group of its own: it is waited for with its threads
    if (pid_ == 0) {
      char begin = 0;
      const bool traced = ::dup2(commands.get(), kCommands) == kCommands && ::read(kCommands, &begin, 1) == 1;
      ::_exit(traced ? TakeAsTold() : 1);
    }
    traced_ = ::ptrace(PTRACE_SEIZE, pid_, nullptr, PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXIT | PTRACE_O_EXITKILL) == 0;
    Tell();
  }
  ~TracedCloser() {
    ::kill(pid_, SIGKILL);
    for (const pid_t thread : kept_) ::ptrace(PTRACE_CONT, thread, nullptr, nullptr);
    int status = 0;
    for (pid_t thread; (thread = ::waitpid(-pid_, &status, __WALL)) > 0;) {
      if (WIFSTOPPED(status)) ::ptrace(PTRACE_CONT, thread, nullptr, nullptr);
    }
  }
  TracedCloser(const TracedCloser&) = delete;
  TracedCloser& operator=(const TracedCloser&) = delete;

  bool traced() const noexcept { return traced_; }
  void Tell() { REQUIRE(::write(tell_.get(), "x", 1) == 1); }
  // Whether the process has ended.
  bool ended() {
    GoOn();
    return ended_;
  }
  // Threads that have been kept where they end, those that were released included.
  std::size_t kept() {
    GoOn();
    return released_ + kept_.size();
  }
  void ReleaseOne() {
    REQUIRE(::ptrace(PTRACE_CONT, kept_.back(), nullptr, nullptr) == 0);
    kept_.pop_back();
    ++released_;
  }

 private:
  // Lets all other threads that have stopped go on.
  void GoOn() {
    int status = 0;
    for (pid_t thread; (thread = ::waitpid(-pid_, &status, __WALL | WNOHANG)) > 0;) {
      if (!WIFSTOPPED(status)) {
        ended_ |= thread == pid_;
        continue;
      }
      const int event = status >> 16;
      const std::string commands = "/proc/" + std::to_string(thread) + "/fd/" + std::to_string(kCommands);
      if (event == PTRACE_EVENT_EXIT && ::faccessat(AT_FDCWD, commands.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) != 0) {
        kept_.push_back(thread);
      } else {
        ::ptrace(PTRACE_CONT, thread, nullptr, event == 0 ? WSTOPSIG(status) : 0);
      }
    }
  }

  UniqueFd tell_;
  pid_t pid_ = -1;
  bool traced_ = false, ended_ = false;
  std::vector<pid_t> kept_;
  std::size_t released_ = 0;
};

}  // namespace

// Without the limit the next one ends as well, and is kept. Where a thread counts itself only once
// its successor runs, that one sometimes ends beyond the limit: both seen.
TEST_CASE("Socket closer: of threads that something keeps from ending there are so many, and the next ends when one has gone", "[unit]") {
  TracedCloser closer;
  if (!closer.traced()) KVM_SKIP("needs to trace a process of its own");
  for (std::size_t count = 1; count <= SocketCloser::kMostEnding; ++count) {
    closer.Tell();
    REQUIRE(Eventually([&] { return closer.kept() == count || closer.ended(); }, 60s));
    if (closer.ended()) KVM_SKIP("needs a kernel that gives a thread a table of descriptors of its own");
  }
  for (int more = 0; more < 8; ++more) closer.Tell();
  CHECK_FALSE(Eventually([&] { return closer.kept() > SocketCloser::kMostEnding; }, 500ms));
  closer.ReleaseOne();
  CHECK(Eventually([&] { return closer.kept() > SocketCloser::kMostEnding; }, 60s));
  CHECK_FALSE(Eventually([&] { return closer.kept() > SocketCloser::kMostEnding + 1; }, 200ms));
  CHECK_FALSE(closer.ended());
}

}  // namespace kvm
