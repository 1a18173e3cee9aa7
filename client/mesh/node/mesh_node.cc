#include "client/mesh/node/mesh_node.h"

#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>
#include <utility>

#include "client/mesh/log/event_log.h"
#include "client/mesh/membership/etcd_membership.h"
#include "client/mesh/node/serving/accepting.h"
#include "client/mesh/node/serving/fetch_service.h"
#include "client/mesh/node/serving/worker_service.h"
#include "client/mesh/threads/counted.h"
#include "client/mesh/threads/keep_running.h"
#include "client/mesh/transfer/make_ucx.h"
#include "client/mesh/transfer/stream_channel.h"
#include "proto/base/bytes_only_socket.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using Local = asio::local::stream_protocol;

constexpr std::chrono::milliseconds kLeaveTimeout{2000};

Result<std::unique_ptr<Transfer>> StartUcx(NodeState& state, TcpTransfer& tcp) {
  const bool own_address = !state.config.ucx_listen.empty();
  Result<asio::ip::tcp::endpoint> at = ParseAddress(own_address ? state.config.ucx_listen : state.config.listen);
  if (!at) return at.error();
  if (!own_address) at->port(0);
  return MakeUcxTransfer(state.io, tcp, *at);
}

// Worth a line in the log. A connection that ends before its hello is none: a check whether the
// port is open.
bool IsRefusal(const Error& error) noexcept {
  return error.code == Errc::kPermissionDenied || error.code == Errc::kVersionMismatch || error.code == Errc::kProtocol;
}

// Blocks go to this process's own user only, as they do in a domain of kvmd's by default.
bool IsOwnUser(std::uint32_t uid) { return uid == ::geteuid() || uid == 0; }

}  // namespace

Result<std::unique_ptr<MeshNode>> MeshNode::Create(const Config& config, StaticMembership::Read read_peers, std::vector<PassedFd> passed) {
  // Without a permission that only the user can give, "auto" is TCP.
  const bool ucx_wanted = config.transfer == TransferChoice::kUcx ||
                          (config.transfer == TransferChoice::kAuto && (!config.tls.all() || config.ucx_unencrypted));
  // First, since no other thread may run.
  Status ucx_loaded = ucx_wanted ? LoadUcx() : Status();
  ClientOptions options;
  options.socket_path = config.kvmd_socket;
  options.name = "kvmd-mesh";
  options.start_offline = true;
  options.verify_one_in = config.verify_one_in;
  Result<std::shared_ptr<Client>> client = Client::Connect(options);
  if (!client) return client.error();
  std::unique_ptr<MeshNode> node(new MeshNode(config, std::move(*client)));
  if (Status taken = node->status_server_.Take(std::move(passed)); !taken) return taken.error();
  std::shared_ptr<TlsIdentity> identity;
  if (config.tls.all()) {
    Result<std::shared_ptr<TlsIdentity>> loaded = TlsIdentity::Load(config.tls, config.node);
    if (!loaded) return loaded.error();
    identity = std::move(*loaded);
  }
  Result<std::unique_ptr<TcpTransfer>> transfer =
      TcpTransfer::Listen(node->state_.io, config.listen, std::move(identity), config.tcp_congestion);
  if (!transfer) return transfer.error();
  node->tcp_ = std::move(*transfer);
  if (ucx_wanted) {
    Result<std::unique_ptr<Transfer>> ucx = ucx_loaded ? StartUcx(node->state_, *node->tcp_) : ucx_loaded.error();
    if (ucx) {
      node->ucx_ = std::move(*ucx);
    } else {
      LogEvent(LogLevel::kWarn, "ucx_not_started", {{"reason", ucx.error().ToString()}});
    }
  }
  if (Status listening = node->workers_.Listen(config.mesh_socket); !listening) return listening.error();
  node->peers_.Use(node->transfer());
  if (Status added = node->AddMemberships(std::move(read_peers)); !added) return added.error();
  if (Status opened = node->OpenDisk(); !opened) return opened.error();
  if (!config.events.endpoint.empty()) {
    Result<std::unique_ptr<NodeEvents>> events = StartEvents(config.events, config.node);
    if (!events) return events.error();
    node->state_.events = std::move(*events);
  }
  return node;
}

Status MeshNode::AddMemberships(StaticMembership::Read read_peers) {
  const Config& config = state_.config;
  memberships_.push_back(std::make_unique<StaticMembership>(config.peers, std::move(read_peers)));
  if (config.etcd.endpoints.empty()) return {};
  EtcdMembership::Self self;
  self.node = config.node;
  self.address = config.etcd.advertise.empty() ? address() : config.etcd.advertise;
  self.any_machine = config.any_machine();
  self.domain = [this] { return state_.client->domain(); };
  Result<std::unique_ptr<EtcdMembership>> etcd = EtcdMembership::Create(state_.io, config.etcd, std::move(self));
  if (!etcd) return etcd.error();
  memberships_.push_back(std::move(*etcd));
  return {};
}

Status MeshNode::OpenDisk() {
  const Config& config = state_.config;
  if (config.disk.path.empty()) return {};
  Result<std::unique_ptr<DiskCache>> cache = DiskCache::Open(config.disk);
  if (!cache) return cache.error();
  state_.disk = std::make_unique<NodeDisk>(std::move(*cache), state_.io, state_.work_failures);
  disk_source_ = std::make_shared<DiskSource>(state_);
  disk_feed_ = std::make_unique<DiskFeed>(state_);
  disk_keys_ = std::make_unique<DiskKeys>(state_);
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
  boost::system::error_code ignored;
  end_.add(SIGTERM, ignored);
  end_.add(SIGINT, ignored);
  EndOnSignal();
  reload_.add(SIGHUP, ignored);
  KeepRunning::Start(state_.io, [this] { return ReloadOnSignal(); });
  KeepRunning::Start(state_.io, [this] { return scanner_.Run(); });
  if (disk_feed_) KeepRunning::Start(state_.io, [this] { return disk_feed_->Run(); });
  if (disk_keys_) KeepRunning::Start(state_.io, [this] { return disk_keys_->Run(); });
  KeepRunning::Start(state_.io, [this] { return AcceptPeers(); });
  status_ = std::make_unique<NodeStatus>(state_, peers_, memberships_, transfer(), address());
  KeepRunning::Start(state_.io, [this] { return AcceptWorkers(); });
  status_server_.Start(*status_);
  for (std::size_t rank = 0; rank < memberships_.size(); ++rank) {
    Membership& membership = *memberships_[rank];
    membership.Start(
        [this, rank, name = std::string(membership.name())](const std::vector<Member>& members) { peers_.Update(rank, name, members); });
  }
  KeepRunning::RunAll(state_.io);
  workers_.RemoveFile();
  status_server_.Close();
}

Awaitable<void> MeshNode::ReloadOnSignal() {
  for (;;) {
    boost::system::error_code error;
    co_await reload_.async_wait(asio::redirect_error(asio::use_awaitable, error));
    if (error) co_return;
    if (state_.config.tls.all()) ReloadCertificates();
    for (const auto& membership : memberships_) membership->Reload();
  }
}

void MeshNode::ReloadCertificates() {
  Result<std::shared_ptr<TlsIdentity>> identity = TlsIdentity::Load(state_.config.tls, state_.config.node);
  if (identity) {
    tcp_->UseIdentity(std::move(*identity));
    LogEvent(LogLevel::kInfo, "certificates_reloaded", {});
  } else {
    LogEvent(LogLevel::kError, "certificates_not_reloaded", {{"reason", identity.error().ToString()}});
  }
}

void MeshNode::EndOnSignal() {
  end_.async_wait([this](boost::system::error_code error, int) {
    if (error) return;
    if (std::exchange(ending_, true)) return state_.io.stop();
    EndOnSignal();
    asio::co_spawn(state_.io, LeaveMemberships(), [this](const std::exception_ptr&) { state_.io.stop(); });
  });
}

Awaitable<void> MeshNode::LeaveMemberships() {
  const Time deadline = std::chrono::steady_clock::now() + kLeaveTimeout;
  for (const auto& membership : memberships_) co_await membership->Leave(deadline);
}

Awaitable<void> MeshNode::AcceptPeers() {
  for (;;) {
    Result<std::shared_ptr<Channel>> channel = co_await transfer().Accept();
    if (!channel && channel.error().code == Errc::kCancelled) co_return;
    if (!channel) {
      LogRefused(accept_lines_, "accept_failed", address(), channel.error().ToString());
      co_await PauseAccepting(state_.io);
    } else if (peer_connections_ >= state_.config.max_connections) {
      LogRefused(peer_lines_, "peer_refused", (*channel)->remote(), "all of --max-connections are taken");
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
    const WaitingChannels::Entry greeting(greeting_, channel);
    greeted = co_await service.Greet();
  }
  if (greeted) {
    co_await service.Serve();
  } else if (IsRefusal(greeted.error())) {
    LogRefused(peer_lines_, "peer_refused", channel->remote(), greeted.error().ToString());
  }
  channel->Close();
}

Awaitable<void> MeshNode::AcceptWorkers() {
  for (;;) {
    boost::system::error_code error;
    Local::socket socket = co_await workers_.acceptor().async_accept(asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      LogRefused(accept_lines_, "accept_failed", state_.config.mesh_socket, error.message());
      co_await PauseAccepting(state_.io);
      continue;
    }
    // Destroying it closes it.
    BytesOnlySocket<Local> worker(std::move(socket), closer_);
    const bool full = worker_connections_ >= state_.config.max_connections, own = IsOwnUser(worker.uid());
    if (full || !own) {
      LogRefused(worker_lines_, "worker_refused", "user " + std::to_string(worker.uid()),
                 own ? "all of --max-connections are taken" : "kvmd-mesh serves user " + std::to_string(::geteuid()) + " and root alone");
      continue;
    }
    if (closer_.Behind(worker.uid())) continue;
    std::shared_ptr<Channel> channel = std::make_shared<StreamChannel<BytesOnlySocket<Local>>>(std::move(worker));
    asio::co_spawn(state_.io, ServeWorker(channel), kAlone);
  }
}

Awaitable<void> MeshNode::ServeWorker(std::shared_ptr<Channel> channel) {
  const Counted connected(worker_connections_);
  WorkerService service(state_, joins_, peers_, *status_, asking_);
  co_await service.Serve(std::move(channel));
}

}  // namespace kvm::mesh
