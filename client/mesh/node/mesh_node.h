// MeshNode: the parts of a kvmd-mesh process, and the connections that it takes. main makes one and
// runs it.
#pragma once

#include <boost/asio/local/stream_protocol.hpp>
#include <memory>
#include <vector>

#include "client/mesh/node/join_service.h"
#include "client/mesh/node/node_state.h"
#include "client/mesh/node/peer.h"
#include "client/mesh/node/scanner.h"
#include "client/mesh/transfer/tcp_transfer.h"

namespace kvm::mesh {

class MeshNode {
 public:
  // Listens on both sockets. kvmd may be away; it is connected to when it is there.
  // kAlreadyExists: another process serves the workers' socket. kInvalidArgument, kSystem.
  [[nodiscard]] static Result<std::unique_ptr<MeshNode>> Create(const Config& config);
  ~MeshNode();

  // Until SIGTERM or SIGINT.
  void Run();
  std::string address() const { return transfer_->address(); }  // where peers connect

 private:
  using LocalAcceptor = boost::asio::local::stream_protocol::acceptor;

  MeshNode(const Config& config, std::shared_ptr<Client> client)
      : state_(config, std::move(client)), workers_(state_.io), scanner_(state_), joins_(state_, scanner_, peers_) {}
  [[nodiscard]] Status ListenForWorkers();
  Awaitable<void> AcceptPeers();
  Awaitable<void> AcceptWorkers();
  Awaitable<void> ServePeer(std::shared_ptr<Channel> channel);
  Awaitable<void> ServeWorker(std::shared_ptr<Channel> channel);

  NodeState state_;
  std::unique_ptr<TcpTransfer> transfer_;
  LocalAcceptor workers_;
  std::vector<std::unique_ptr<Peer>> peers_;
  Scanner scanner_;
  JoinService joins_;
  std::size_t peer_connections_ = 0, worker_connections_ = 0;
};

}  // namespace kvm::mesh
