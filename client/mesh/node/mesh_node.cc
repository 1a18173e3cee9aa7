#include "client/mesh/node/mesh_node.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>

#include "client/mesh/node/fetch_service.h"
#include "client/mesh/transfer/stream_channel.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using Local = asio::local::stream_protocol;

constexpr std::chrono::milliseconds kAcceptPause{100};

Awaitable<void> PauseAccepting(asio::io_context& io) {
  asio::steady_timer timer(io, kAcceptPause);
  boost::system::error_code ignored;
  co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

// Blocks go to this process's own user only, as they do in a domain of kvmd's by default.
bool IsOwnUser(Local::socket& socket) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (::getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  return peer.uid == ::geteuid() || peer.uid == 0;
}

}  // namespace

Result<std::unique_ptr<MeshNode>> MeshNode::Create(const Config& config) {
  ClientOptions options;
  options.socket_path = config.kvmd_socket;
  options.name = "kvmd-mesh";
  options.start_offline = true;
  Result<std::shared_ptr<Client>> client = Client::Connect(options);
  if (!client) return client.error();
  std::unique_ptr<MeshNode> node(new MeshNode(config, std::move(*client)));
  Result<std::unique_ptr<TcpTransfer>> transfer = TcpTransfer::Listen(node->state_.io, config.listen);
  if (!transfer) return transfer.error();
  node->transfer_ = std::move(*transfer);
  if (Status listening = node->ListenForWorkers(); !listening) return listening.error();
  for (const PeerConfig& peer : config.peers) node->peers_.push_back(std::make_unique<Peer>(node->state_, *node->transfer_, peer));
  return node;
}

MeshNode::~MeshNode() {
  state_.copy_threads.join();
  state_.control_threads.join();
}

Status MeshNode::ListenForWorkers() {
  const std::string& path = state_.config.mesh_socket;
  if (path.size() >= sizeof(sockaddr_un::sun_path)) return MakeError(Errc::kInvalidArgument, "--mesh-socket: " + path + " is too long");
  boost::system::error_code error;
  Local::socket probe(state_.io);
  probe.connect(Local::endpoint(path), error);
  if (!error) return MakeError(Errc::kAlreadyExists, "another kvmd-mesh listens on " + path);
  ::unlink(path.c_str());
  const mode_t before = ::umask(0177);
  workers_.open(Local(), error);
  if (!error) workers_.bind(Local::endpoint(path), error);
  ::umask(before);
  if (!error) workers_.listen(asio::socket_base::max_listen_connections, error);
  return error ? Status(SystemError("listen on " + path, error.value())) : Status();
}

void MeshNode::Run() {
  asio::signal_set signals(state_.io, SIGTERM, SIGINT);
  signals.async_wait([this](boost::system::error_code, int) { state_.io.stop(); });
  asio::co_spawn(state_.io, scanner_.Run(), asio::detached);
  asio::co_spawn(state_.io, AcceptPeers(), asio::detached);
  asio::co_spawn(state_.io, AcceptWorkers(), asio::detached);
  for (const auto& peer : peers_) asio::co_spawn(state_.io, peer->Pull(), asio::detached);
  state_.io.run();
  ::unlink(state_.config.mesh_socket.c_str());
}

Awaitable<void> MeshNode::AcceptPeers() {
  for (;;) {
    Result<std::shared_ptr<Channel>> channel = co_await transfer_->Accept();
    if (!channel && channel.error().code == Errc::kCancelled) co_return;
    if (!channel) {
      co_await PauseAccepting(state_.io);
    } else if (peer_connections_ >= state_.config.max_connections) {
      (*channel)->Close();
    } else {
      asio::co_spawn(state_.io, ServePeer(*channel), asio::detached);
    }
  }
}

Awaitable<void> MeshNode::ServePeer(std::shared_ptr<Channel> channel) {
  ++peer_connections_;
  FetchService service(state_, std::move(channel));
  co_await service.Run();
  --peer_connections_;
}

Awaitable<void> MeshNode::AcceptWorkers() {
  for (;;) {
    boost::system::error_code error;
    Local::socket socket = co_await workers_.async_accept(asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      co_await PauseAccepting(state_.io);
      continue;
    }
    // Destroying the socket closes it.
    if (worker_connections_ >= state_.config.max_connections || !IsOwnUser(socket)) continue;
    std::shared_ptr<Channel> channel = std::make_shared<StreamChannel<Local::socket>>(std::move(socket));
    asio::co_spawn(state_.io, ServeWorker(channel), asio::detached);
  }
}

Awaitable<void> MeshNode::ServeWorker(std::shared_ptr<Channel> channel) {
  ++worker_connections_;
  co_await joins_.Serve(std::move(channel));
  --worker_connections_;
}

}  // namespace kvm::mesh
