// MeshNode: the parts of a kvmd-mesh process, and the connections that it takes. main makes one and
// runs it.
#pragma once

#include <boost/asio/signal_set.hpp>
#include <memory>
#include <vector>

#include "client/mesh/node/disk_feed.h"
#include "client/mesh/node/disk_source.h"
#include "client/mesh/node/greeting_peers.h"
#include "client/mesh/node/join_service.h"
#include "client/mesh/node/node_state.h"
#include "client/mesh/node/peer.h"
#include "client/mesh/node/scanner.h"
#include "client/mesh/node/worker_socket.h"
#include "client/mesh/transfer/tcp_transfer.h"

namespace kvm::mesh {

class MeshNode {
 public:
  // Listens on both sockets. kvmd may be away; it is connected to when it is there.
  // kAlreadyExists: another process serves the workers' socket, or has the directory of the disk
  // cache. kInvalidArgument: also a certificate that is not good. kPermissionDenied: that
  // directory. kSystem.
  [[nodiscard]] static Result<std::unique_ptr<MeshNode>> Create(const Config& config);
  ~MeshNode();

  // Until SIGTERM or SIGINT. SIGHUP reads the certificates again.
  void Run();
  std::string address() const { return transfer_->address(); }  // where peers connect

 private:
  MeshNode(const Config& config, std::shared_ptr<Client> client)
      : state_(config, std::move(client)),
        workers_(state_.io),
        scanner_(state_),
        joins_(state_, scanner_, sources_),
        greeting_(std::max<std::size_t>(config.max_connections / 4, 1)),
        reload_(state_.io) {}
  [[nodiscard]] Status OpenDisk();
  Awaitable<void> AcceptPeers();
  Awaitable<void> AcceptWorkers();
  Awaitable<void> ServePeer(std::shared_ptr<Channel> channel);
  Awaitable<void> ServeWorker(std::shared_ptr<Channel> channel);
  Awaitable<void> ReloadOnSignal();

  NodeState state_;
  std::unique_ptr<TcpTransfer> transfer_;
  WorkerSocket workers_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::unique_ptr<DiskSource> disk_source_;  // null: there is no disk cache
  std::unique_ptr<DiskFeed> disk_feed_;
  std::vector<Source*> sources_;  // all of these
  Scanner scanner_;
  JoinService joins_;
  GreetingPeers greeting_;
  boost::asio::signal_set reload_;
  std::size_t peer_connections_ = 0, worker_connections_ = 0;
};

}  // namespace kvm::mesh
