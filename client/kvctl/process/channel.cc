#include "client/kvctl/process/channel.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "client/kvctl/process/interrupt.h"

namespace kvm::ctl {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// The longest poll, after which the flag of a signal that came just before the poll is seen.
constexpr milliseconds kPollSlice{100};

Error Gone() { return MakeError(Errc::kUnavailable, "the other process has ended"); }

}  // namespace

Result<std::pair<Channel, Channel>> Channel::Pair() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return SystemError("socketpair");
  return std::pair(Channel(UniqueFd(ends[0])), Channel(UniqueFd(ends[1])));
}

Status Channel::Send(std::span<const std::byte> message) {
  if (message.size() > kMaxMessageBytes) {
    return MakeError(Errc::kInvalidArgument, "message of " + std::to_string(message.size()) + " bytes to another process");
  }
  for (;;) {
    if (::send(socket_.get(), message.data(), message.size(), MSG_NOSIGNAL) >= 0) return {};
    if (errno == EINTR && !Interrupted()) continue;
    if (errno == EINTR) return MakeError(Errc::kCancelled, "interrupted");
    if (errno == EPIPE || errno == ECONNRESET) return Gone();
    return SystemError("send to another process");
  }
}

Result<std::vector<std::byte>> Channel::Receive(Deadline deadline) {
  for (;;) {
    if (Interrupted()) return MakeError(Errc::kCancelled, "interrupted");
    const auto now = steady_clock::now();
    if (now >= deadline) return MakeError(Errc::kDeadlineExceeded, "no answer from another process in time");
    const auto slice = deadline - now < kPollSlice ? std::chrono::ceil<milliseconds>(deadline - now) : kPollSlice;
    pollfd poll_fd{socket_.get(), POLLIN, 0};
    const int ready = ::poll(&poll_fd, 1, static_cast<int>(slice.count()));
    if (ready < 0 && errno != EINTR) return SystemError("poll");
    if (ready <= 0) continue;
    std::vector<std::byte> message(kMaxMessageBytes);
    const ssize_t got = ::recv(socket_.get(), message.data(), message.size(), 0);
    if (got > 0) {
      message.resize(static_cast<std::size_t>(got));
      return message;
    }
    if (got == 0 || errno == ECONNRESET) return Gone();
    if (errno != EINTR) return SystemError("receive from another process");
  }
}

bool Channel::Readable() const noexcept {
  pollfd poll_fd{socket_.get(), POLLIN, 0};
  return ::poll(&poll_fd, 1, 0) > 0;
}

}  // namespace kvm::ctl
