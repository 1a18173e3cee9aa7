#include "daemon/session.h"

#include <sys/socket.h>

#include <optional>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "daemon/process_info.h"

namespace kvm::daemon {

namespace asio = boost::asio;
using std::chrono::steady_clock;

namespace {

// How much one client may have read before others get their turn.
constexpr int kReadsPerTurn = 4;

}  // namespace

Session::Session(Socket socket, const Config& config, Broker& broker, Ended ended)
    : socket_(std::move(socket)),
      process_(socket_.get_executor()),
      config_(config),
      broker_(broker),
      ended_(std::move(ended)),
      connected_at_(steady_clock::now()),
      progress_at_(connected_at_) {}

Session::~Session() = default;

void Session::Start() {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (::getsockopt(socket_.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    Log(LogLevel::kWarn, "no_peer_credentials", {{"reason", SystemError("getsockopt").ToString()}});
    boost::system::error_code ignored;
    socket_.close(ignored);
    return;
  }
  credentials_ = {static_cast<std::uint32_t>(peer.pid), peer.uid, peer.gid};
  id_ = broker_.Join(*this, credentials_);
  WaitForProcess(PeerPidFd(socket_.native_handle(), credentials_.pid));
  ReadLoop();
}

void Session::ReadLoop() {
  asio::co_spawn(
      socket_.get_executor(),
      [self = shared_from_this()]() -> asio::awaitable<void> {
        while (!self->closed_) {
          boost::system::error_code error;
          co_await self->socket_.async_wait(Socket::wait_read, asio::redirect_error(asio::use_awaitable, error));
          if (error || self->closed_) co_return;
          self->reading_ = true;
          const Status status = self->ReadAvailable();
          self->reading_ = false;
          if (self->closed_) co_return;
          if (!status) {
            const bool left = status.error().code == Errc::kCancelled;
            if (!left) {
              ++self->broker_.protocol_errors;
              LogLimited(LogLevel::kWarn, "client_dropped",
                         {{"client", self->id_}, {"pid", self->credentials_.pid}, {"reason", status.error().ToString()}});
            }
            self->Close(left ? "" : status.error().ToString());
            co_return;
          }
          self->Flush();
        }
      },
      asio::detached);
}

// Errors: kCancelled for a client that has closed, else what it did wrong.
Status Session::ReadAvailable() {
  for (int read = 0; read < kReadsPerTurn && !closed_ && !closing_; ++read) {
    Result<ReadOutcome> outcome = reader_.Fill(socket_.native_handle());
    if (!outcome) {
      if (outcome.error().sys_errno == ECONNRESET) return MakeError(Errc::kCancelled, "connection reset");
      return outcome.error();
    }
    if (*outcome == ReadOutcome::kWouldBlock) return {};
    if (*outcome == ReadOutcome::kEnd) return MakeError(Errc::kCancelled, "closed");
    progress_at_ = steady_clock::now();
    for (;;) {
      Result<std::optional<Frame>> frame = reader_.Next();
      if (!frame) return frame.error();
      if (!*frame) break;
      kvmwire::ClientMessage message;
      if (!message.ParseFromString((*frame)->payload)) return MakeError(Errc::kProtocol, "a message that can't be parsed");
      if (Status handled = broker_.Handle(id_, std::move(message), std::move((*frame)->fds)); !handled) return handled;
      if (closed_ || closing_) return {};
    }
  }
  return {};
}

void Session::WaitForProcess(UniqueFd pidfd) {
  if (!pidfd) return;
  boost::system::error_code error;
  process_.assign(pidfd.get(), error);
  if (error) return;
  static_cast<void>(pidfd.Release());
  process_.async_wait(asio::posix::stream_descriptor::wait_read, [weak = weak_from_this()](const boost::system::error_code& failed) {
    const std::shared_ptr<Session> self = weak.lock();
    if (self && !failed) self->Close("", /*died=*/true);
  });
}

void Session::Send(const kvmwire::ServerMessage& message, const std::vector<int>& fds) {
  if (closed_ || closing_) return;
  if (Status appended = writer_.Append(message.SerializeAsString(), fds); !appended) {
    Log(LogLevel::kError, "reply_failed", {{"client", id_}, {"reason", appended.error().ToString()}});
    return CloseLater("kvmd could not answer");
  }
  if (writer_.queued_bytes() > config_.max_queue_bytes) {
    LogLimited(LogLevel::kWarn, "client_too_slow", {{"client", id_}, {"pid", credentials_.pid}, {"queued_bytes", writer_.queued_bytes()}});
    return CloseLater("too slow: the limit of unread bytes is reached");
  }
  if (!reading_) Flush();
}

void Session::Flush() {
  if (closed_ || wait_writable_) return;
  Result<bool> drained = writer_.Drain(socket_.native_handle());
  if (!drained) return CloseLater("");
  if (*drained) return;
  wait_writable_ = true;
  socket_.async_wait(Socket::wait_write, [self = shared_from_this()](const boost::system::error_code& error) {
    self->wait_writable_ = false;
    if (!error) self->Flush();
  });
}

// The broker may be in the middle of something that this client is part of.
void Session::CloseLater(std::string reason) {
  if (closed_ || closing_) return;
  closing_ = true;
  asio::post(socket_.get_executor(), [self = shared_from_this(), reason = std::move(reason)] { self->Close(reason); });
}

void Session::Close(const std::string& reason, bool died) {
  if (closed_) return;
  closed_ = true;
  if (!reason.empty() && !died) {
    kvmwire::ServerMessage message;
    message.mutable_goodbye()->set_reason(reason);
    if (writer_.Append(message.SerializeAsString())) static_cast<void>(writer_.Drain(socket_.native_handle()));
  }
  boost::system::error_code ignored;
  process_.close(ignored);
  socket_.shutdown(Socket::shutdown_both, ignored);
  socket_.close(ignored);
  broker_.Leave(id_, died);
  ended_(id_);
}

void Session::CheckTimeouts(SteadyTime now) {
  if (closed_) return;
  std::string reason;
  if (!broker_.Greeted(id_) && now - connected_at_ > std::chrono::milliseconds(config_.hello_timeout_ms)) {
    reason = "no hello in time";
  } else if (reader_.InsideFrame() && now - progress_at_ > std::chrono::milliseconds(config_.frame_timeout_ms)) {
    reason = "the rest of a message did not come in time";
  }
  if (reason.empty()) return;
  ++broker_.protocol_errors;
  LogLimited(LogLevel::kWarn, "client_dropped", {{"client", id_}, {"pid", credentials_.pid}, {"reason", reason}});
  Close(reason);
}

}  // namespace kvm::daemon
