#include "client/mesh/transfer/tcp_transfer.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "client/mesh/transfer/stream_channel.h"
#include "client/mesh/transfer/tls_channel.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

std::string TextOf(const tcp::endpoint& at) {
  const std::string host = at.address().to_string();
  return (at.address().is_v6() ? "[" + host + "]" : host) + ":" + std::to_string(at.port());
}

std::string CongestionOf(int socket) {
  std::array<char, 16> name{};  // TCP_CA_NAME_MAX
  socklen_t size = name.size();
  if (::getsockopt(socket, IPPROTO_TCP, TCP_CONGESTION, name.data(), &size) != 0) return {};
  return std::string(name.data(), ::strnlen(name.data(), size));
}

bool SetCongestion(int socket, const std::string& name) {
  return ::setsockopt(socket, IPPROTO_TCP, TCP_CONGESTION, name.data(), static_cast<socklen_t>(name.size())) == 0;
}

}  // namespace

// Connections that are accepted have what the listening socket has.
Status TcpTransfer::UseCongestion(const std::string& wanted) {
  const int socket = acceptor_.native_handle();
  if (wanted == kSystemCongestion) return {};
  if (wanted != kAutoCongestion) {
    if (!SetCongestion(socket, wanted)) {
      return MakeError(Errc::kInvalidArgument, "congestion control " + wanted + ": " + std::generic_category().message(errno) +
                                                   " (net.ipv4.tcp_allowed_congestion_control)");
    }
    congestion_ = wanted;
  } else if (CongestionOf(socket).starts_with("bbr")) {
    for (const char* const name : {"cubic", "reno"}) {
      if (!SetCongestion(socket, name)) continue;
      congestion_ = name;
      break;
    }
  }
  return {};
}

std::string TcpTransfer::congestion() { return CongestionOf(acceptor_.native_handle()); }

std::shared_ptr<Channel> TcpTransfer::MakeChannel(tcp::socket socket, bool accepted) const {
  boost::system::error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  // A peer whose machine has gone without a word is noticed, and its connection closed.
  socket.set_option(asio::socket_base::keep_alive(true), ignored);
  // For one that was opened; that the kernel refuses it now costs speed alone.
  if (!congestion_.empty()) SetCongestion(socket.native_handle(), congestion_);
  boost::system::error_code gone;
  const tcp::endpoint remote = socket.remote_endpoint(gone);
  std::shared_ptr<Channel> channel;
  if (identity_) {
    const TlsChannel::Role role = accepted ? TlsChannel::Role::server : TlsChannel::Role::client;
    channel = std::make_shared<TlsChannel>(std::move(socket), identity_, role);
  } else {
    channel = std::make_shared<StreamChannel<tcp::socket>>(std::move(socket));
  }
  if (!gone) channel->SetRemote(TextOf(remote));
  return channel;
}

void TcpTransfer::UseIdentity(std::shared_ptr<TlsIdentity> identity) {
  if (identity_) identity_->Replace();
  identity_ = std::move(identity);
}

Result<std::unique_ptr<TcpTransfer>> TcpTransfer::Listen(asio::io_context& io, const std::string& address,
                                                         std::shared_ptr<TlsIdentity> identity, const std::string& congestion) {
  Result<tcp::endpoint> at = ParseAddress(address);
  if (!at) return at.error();
  std::unique_ptr<TcpTransfer> out(new TcpTransfer(io, std::move(identity)));
  boost::system::error_code error;
  out->acceptor_.open(at->protocol(), error);
  if (!error) out->acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) out->acceptor_.bind(*at, error);
  if (!error) out->acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (error) return SystemError("listen on " + address, error.value());
  if (Status used = out->UseCongestion(congestion); !used) return used.error();
  return out;
}

std::string TcpTransfer::address() const {
  boost::system::error_code ignored;
  return TextOf(acceptor_.local_endpoint(ignored));
}

Awaitable<Result<std::shared_ptr<Channel>>> TcpTransfer::Connect(std::string address, Time deadline) {
  Result<tcp::endpoint> at = ParseAddress(address);
  if (!at) co_return at.error();
  const auto socket = std::make_shared<tcp::socket>(io_);
  asio::steady_timer timer(io_, deadline);
  const auto connecting = std::make_shared<bool>(true);
  timer.async_wait([socket, connecting](boost::system::error_code error) {
    boost::system::error_code ignored;
    if (!error && *connecting) socket->close(ignored);
  });
  boost::system::error_code error;
  co_await socket->async_connect(*at, asio::redirect_error(asio::use_awaitable, error));
  *connecting = false;
  timer.cancel();
  if (!error) co_return MakeChannel(std::move(*socket), false);
  const bool late = std::chrono::steady_clock::now() >= deadline;
  co_return MakeError(late ? Errc::kDeadlineExceeded : Errc::kUnavailable, "connect to " + address + ": " + error.message());
}

Awaitable<Result<std::shared_ptr<Channel>>> TcpTransfer::Accept() {
  boost::system::error_code error;
  tcp::socket socket = co_await acceptor_.async_accept(asio::redirect_error(asio::use_awaitable, error));
  if (!error) co_return MakeChannel(std::move(socket), true);
  if (!acceptor_.is_open()) co_return MakeError(Errc::kCancelled, "the listener is closed");
  co_return SystemError("accept", error.value());
}

void TcpTransfer::Stop() noexcept {
  boost::system::error_code ignored;
  acceptor_.close(ignored);
}

}  // namespace kvm::mesh
