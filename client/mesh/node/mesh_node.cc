#include "client/mesh/node/mesh_node.h"

#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>
#include <iostream>

#include "client/mesh/node/fetch_service.h"
#include "client/mesh/node/worker_service.h"
#include "client/mesh/threads/counted.h"
#include "client/mesh/threads/keep_running.h"
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
  options.verify_one_in = config.verify_one_in;
  Result<std::shared_ptr<Client>> client = Client::Connect(options);
  if (!client) return client.error();
  std::unique_ptr<MeshNode> node(new MeshNode(config, std::move(*client)));
  std::shared_ptr<TlsIdentity> identity;
  if (config.tls.all()) {
    Result<std::shared_ptr<TlsIdentity>> loaded = TlsIdentity::Load(config.tls, config.node);
    if (!loaded) return loaded.error();
    identity = std::move(*loaded);
  }
  Result<std::unique_ptr<TcpTransfer>> transfer = TcpTransfer::Listen(node->state_.io, config.listen, std::move(identity));
  if (!transfer) return transfer.error();
  node->transfer_ = std::move(*transfer);
  if (Status listening = node->workers_.Listen(config.mesh_socket); !listening) return listening.error();
  for (const PeerConfig& peer : config.peers) node->peers_.push_back(std::make_unique<Peer>(node->state_, *node->transfer_, peer));
  for (const auto& peer : node->peers_) node->sources_.push_back(peer.get());
  if (Status opened = node->OpenDisk(); !opened) return opened.error();
  return node;
}

Status MeshNode::OpenDisk() {
  const Config& config = state_.config;
  if (config.disk.path.empty()) return {};
  Result<std::unique_ptr<DiskCache>> cache = DiskCache::Open(config.disk);
  if (!cache) return cache.error();
  state_.disk = std::make_unique<NodeDisk>(std::move(*cache));
  disk_source_ = std::make_unique<DiskSource>(state_);
  disk_feed_ = std::make_unique<DiskFeed>(state_);
  sources_.push_back(disk_source_.get());
  return {};
}

MeshNode::~MeshNode() {
  state_.copy_threads.join();
  state_.control_threads.join();
  if (state_.disk) state_.disk->Stop();
  // Coroutines that are in the middle of something undo it in what the members below state_ own.
  state_.io.shutdown();
}

void MeshNode::Run() {
  asio::signal_set signals(state_.io, SIGTERM, SIGINT);
  signals.async_wait([this](boost::system::error_code, int) { state_.io.stop(); });
  boost::system::error_code ignored;
  reload_.add(SIGHUP, ignored);
  KeepRunning::Start(state_.io, [this] { return ReloadOnSignal(); });
  KeepRunning::Start(state_.io, [this] { return scanner_.Run(); });
  if (disk_feed_) KeepRunning::Start(state_.io, [this] { return disk_feed_->Run(); });
  KeepRunning::Start(state_.io, [this] { return AcceptPeers(); });
  KeepRunning::Start(state_.io, [this] { return AcceptWorkers(); });
  for (const auto& peer : peers_) KeepRunning::Start(state_.io, [each = peer.get()] { return each->Pull(); });
  while (!state_.io.stopped()) {
    try {
      state_.io.run();
    } catch (const std::exception& failed) {
      // A lack of memory in a handler; those of other connections go on.
      std::cerr << "kvmd-mesh: " << failed.what() << '\n';
    }
  }
  workers_.RemoveFile();
}

Awaitable<void> MeshNode::ReloadOnSignal() {
  for (;;) {
    boost::system::error_code error;
    co_await reload_.async_wait(asio::redirect_error(asio::use_awaitable, error));
    if (error) co_return;
    if (!state_.config.tls.all()) continue;
    Result<std::shared_ptr<TlsIdentity>> identity = TlsIdentity::Load(state_.config.tls, state_.config.node);
    if (identity) {
      transfer_->UseIdentity(std::move(*identity));
      std::cerr << "kvmd-mesh: the certificates have been read again" << '\n';
    } else {
      std::cerr << "kvmd-mesh: the certificates stay as they were: " << identity.error().ToString() << '\n';
    }
  }
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
      asio::co_spawn(state_.io, ServePeer(*channel), kAlone);
    }
  }
}

Awaitable<void> MeshNode::ServePeer(std::shared_ptr<Channel> channel) {
  const Counted connected(peer_connections_);
  FetchService service(state_, channel);
  Status greeted;
  {
    const GreetingPeers::Entry greeting(greeting_, channel);
    greeted = co_await service.Greet();
  }
  if (greeted) co_await service.Serve();
  channel->Close();
}

Awaitable<void> MeshNode::AcceptWorkers() {
  for (;;) {
    boost::system::error_code error;
    Local::socket socket = co_await workers_.acceptor().async_accept(asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      co_await PauseAccepting(state_.io);
      continue;
    }
    // Destroying the socket closes it.
    if (worker_connections_ >= state_.config.max_connections || !IsOwnUser(socket)) continue;
    std::shared_ptr<Channel> channel = std::make_shared<StreamChannel<Local::socket>>(std::move(socket));
    asio::co_spawn(state_.io, ServeWorker(channel), kAlone);
  }
}

Awaitable<void> MeshNode::ServeWorker(std::shared_ptr<Channel> channel) {
  const Counted connected(worker_connections_);
  WorkerService service(state_, joins_, peers_, address());
  co_await service.Serve(std::move(channel));
}

}  // namespace kvm::mesh
