#include "tests/support/mesh/tcp_relay.h"

#include <poll.h>
#include <sys/socket.h>

#include "tests/catch.h"
#include "tests/support/mesh/loopback.h"

namespace kvm::test {
namespace {

// False: one side has ended.
bool PassSome(int from, int to) {
  char bytes[16384];
  const ssize_t got = ::recv(from, bytes, sizeof(bytes), 0);
  return got > 0 && ::send(to, bytes, static_cast<std::size_t>(got), MSG_NOSIGNAL) == got;
}

}  // namespace

TcpRelay::TcpRelay(const std::string& url)
    : target_(url.substr(url.find("//") + 2)), listener_(ListenOnLoopback()), port_(PortOf(listener_)) {
  acceptor_ = std::jthread([this] { Accept(); });
}

TcpRelay::~TcpRelay() {
  stop_ = true;
  acceptor_.join();
}

void TcpRelay::Accept() {
  while (!stop_) {
    pollfd waiting{listener_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 20) <= 0) continue;
    UniqueFd accepted(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!accepted) continue;
    if (cut_) {
      ++refused_;
      continue;
    }
    UniqueFd other = ConnectToLoopback(static_cast<unsigned>(std::stoul(target_.substr(target_.rfind(':') + 1))));
    if (!other) continue;
    threads_.emplace_back([this, from = std::move(accepted), at = std::move(other)]() mutable { Pass(std::move(from), std::move(at)); });
  }
}

void TcpRelay::Pass(UniqueFd from, UniqueFd to) {
  while (!stop_ && !cut_) {
    pollfd waiting[2]{{from.get(), POLLIN, 0}, {to.get(), POLLIN, 0}};
    if (::poll(waiting, 2, 20) <= 0) continue;
    if (waiting[0].revents != 0 && !PassSome(from.get(), to.get())) return;
    if (waiting[1].revents != 0 && !PassSome(to.get(), from.get())) return;
  }
}

}  // namespace kvm::test
