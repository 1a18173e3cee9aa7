#include "client/mesh/node/serving/status_server.h"

#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <string>
#include <utility>

#include "client/mesh/node/serving/accepting.h"
#include "client/mesh/threads/counted.h"
#include "client/mesh/threads/keep_running.h"
#include "client/mesh/transfer/stream_channel.h"
#include "proto/base/bytes_only_socket.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using Local = asio::local::stream_protocol;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kQueryTimeout{30'000};
constexpr milliseconds kStatusTimeout{1000};
constexpr std::size_t kMostQueryBytes = 64;  // a status query has two

}  // namespace

Status StatusServer::Take(std::vector<PassedFd> passed) {
  for (PassedFd& each : passed) {
    const std::string number = std::to_string(each.fd.get());
    if (!IsListeningOnPath(each.fd.get()))
      return MakeError(Errc::kInvalidArgument, "LISTEN_FDS: descriptor " + number + " is no Unix socket that listens");
    Acceptor& acceptor = acceptors_.emplace_back(io_);
    boost::system::error_code error;
    acceptor.assign(Local(), each.fd.get(), error);
    if (error) return SystemError("LISTEN_FDS: descriptor " + number, error.value());
    static_cast<void>(each.fd.Release());
  }
  return {};
}

void StatusServer::Start(const NodeStatus& status) {
  for (Acceptor& acceptor : acceptors_) KeepRunning::Start(io_, [this, &acceptor, &status] { return Accept(acceptor, status); });
}

// In another thread, as a worker's socket (worker_socket.cc).
void StatusServer::Close() noexcept {
  for (Acceptor& acceptor : acceptors_) {
    boost::system::error_code error;
    if (acceptor.is_open()) closer_.Close(::geteuid(), UniqueFd(acceptor.release(error)));
  }
}

Awaitable<void> StatusServer::Accept(Acceptor& acceptor, const NodeStatus& status) {
  for (;;) {
    boost::system::error_code error;
    Local::socket socket = co_await acceptor.async_accept(asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      LogRefused(lines_, "accept_failed", "the socket for metrics", error.message());
      co_await PauseAccepting(io_);
      continue;
    }
    // Destroying it closes it.
    BytesOnlySocket<Local> monitor(std::move(socket), closer_);
    if (connections_ >= kMostConnections) {
      LogRefused(lines_, "status_refused", "user " + std::to_string(monitor.uid()), "too many connections");
      continue;
    }
    if (closer_.Behind(monitor.uid())) continue;
    std::shared_ptr<Channel> channel = std::make_shared<StreamChannel<BytesOnlySocket<Local>>>(std::move(monitor));
    asio::co_spawn(io_, Serve(channel, status), kAlone);
  }
}

Awaitable<void> StatusServer::Serve(std::shared_ptr<Channel> channel, const NodeStatus& status) {
  const Counted connected(connections_);
  for (;;) {
    Result<Received> received = co_await NextQuery(channel);
    kvmmesh::LocalMessage query, answer;
    if (!received || received->payload_bytes != 0 || received->message.size() > kMostQueryBytes) break;
    if (!query.ParseFromString(received->message) || !query.has_status_query()) break;
    status.DescribeForMonitors(*answer.mutable_status());
    const std::string bytes = answer.SerializeAsString();
    Status sent = co_await channel->Send(bytes, {}, steady_clock::now() + kStatusTimeout);
    if (!sent) break;
  }
  channel->Close();
}

Awaitable<Result<Received>> StatusServer::NextQuery(std::shared_ptr<Channel> channel) {
  const WaitingChannels::Entry waits(waiting_, channel);
  co_return co_await channel->Receive(steady_clock::now() + kQueryTimeout);
}

}  // namespace kvm::mesh
