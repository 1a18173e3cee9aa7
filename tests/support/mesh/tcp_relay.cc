#include "tests/support/mesh/tcp_relay.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

#include "tests/catch.h"
#include "tests/support/mesh/mesh_process.h"

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
    : target_(url.substr(url.find("//") + 2)), listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  REQUIRE(listener_);
  REQUIRE(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0);
  REQUIRE(::listen(listener_.get(), 16) == 0);
  REQUIRE(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  port_ = ntohs(address.sin_port);
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
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(static_cast<std::uint16_t>(std::stoul(target_.substr(target_.rfind(':') + 1))));
    UniqueFd other(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(other.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)) != 0) continue;
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
