// MeshNode: the parts of a kvmd-mesh process, and the connections that it takes. main makes one and
// runs it.
#pragma once

#include <boost/asio/signal_set.hpp>
#include <memory>
#include <string>
#include <vector>

#include "client/mesh/log/line_limit.h"
#include "client/mesh/membership/membership.h"
#include "client/mesh/membership/static_membership.h"
#include "client/mesh/node/disk/disk_feed.h"
#include "client/mesh/node/disk/disk_keys.h"
#include "client/mesh/node/disk/disk_source.h"
#include "client/mesh/node/peers/peer_list.h"
#include "client/mesh/node/serving/accepting.h"
#include "client/mesh/node/serving/join_service.h"
#include "client/mesh/node/serving/node_status.h"
#include "client/mesh/node/serving/status_server.h"
#include "client/mesh/node/serving/waiting_channels.h"
#include "client/mesh/node/serving/worker_socket.h"
#include "client/mesh/node/state/node_state.h"
#include "client/mesh/node/state/scanner.h"
#include "client/mesh/transfer/tcp_transfer.h"
#include "proto/base/descriptor_closer.h"
#include "proto/base/passed_fds.h"

namespace kvm::mesh {

class MeshNode {
 public:
  // Listens on both sockets, and on those that the service manager has passed. kvmd may be away; it
  // is connected to when it is there. kAlreadyExists: another process serves the workers' socket,
  // or has the directory of the disk cache. kInvalidArgument: also a certificate that is not good,
  // or a passed descriptor. kPermissionDenied: that directory. kSystem. `read_peers` reads the
  // configured peers again.
  [[nodiscard]] static Result<std::unique_ptr<MeshNode>> Create(const Config& config, StaticMembership::Read read_peers = {},
                                                                std::vector<PassedFd> passed = {});
  ~MeshNode();

  // Until SIGTERM or SIGINT; takes this node off etcd's list then, which a second signal cuts
  // short. SIGHUP reads the certificates and the configured peers again.
  void Run();
  std::string address() const { return tcp_->address(); }    // where peers connect
  std::string way() const { return transfer().bulk().way; }  // of payloads: "tcp" or "ucx"

 private:
  MeshNode(const Config& config, std::shared_ptr<Client> client)
      : state_(config, std::move(client)),
        workers_(state_.io),
        status_server_(state_.io, closer_),
        peers_(state_),
        scanner_(state_),
        joins_(state_, scanner_, peers_, disk_source_),
        greeting_(std::max<std::size_t>(config.max_connections / 4, 1)),
        asking_(std::max<std::size_t>(config.max_connections / 4, 1)),
        reload_(state_.io),
        end_(state_.io) {
    closer_.StartForSockets();
  }
  Transfer& transfer() const noexcept { return ucx_ ? *ucx_ : static_cast<Transfer&>(*tcp_); }
  [[nodiscard]] Status OpenDisk();
  Awaitable<void> AcceptPeers();
  Awaitable<void> AcceptWorkers();
  Awaitable<void> ServePeer(std::shared_ptr<Channel> channel);
  Awaitable<void> ServeWorker(std::shared_ptr<Channel> channel);
  Awaitable<void> ReloadOnSignal();
  void ReloadCertificates();
  void EndOnSignal();
  Awaitable<void> LeaveMemberships();
  Status AddMemberships(StaticMembership::Read read_peers);

  DescriptorCloser closer_;  // of what workers send
  NodeState state_;
  std::unique_ptr<TcpTransfer> tcp_;
  std::unique_ptr<Transfer> ucx_;  // null: payloads travel over TCP
  WorkerSocket workers_;
  StatusServer status_server_;
  std::vector<std::unique_ptr<Membership>> memberships_;  // the first one goes before the others
  PeerList peers_;
  std::shared_ptr<Source> disk_source_;  // null: there is no disk cache
  std::unique_ptr<DiskFeed> disk_feed_;
  std::unique_ptr<DiskKeys> disk_keys_;
  Scanner scanner_;
  JoinService joins_;
  std::unique_ptr<NodeStatus> status_;  // since Run
  WaitingChannels greeting_, asking_;   // peers, workers
  boost::asio::signal_set reload_, end_;
  bool ending_ = false;
  std::size_t peer_connections_ = 0, worker_connections_ = 0;
  LineLimit accept_lines_{kRefusedPause}, peer_lines_{kRefusedPause}, worker_lines_{kRefusedPause};
};

}  // namespace kvm::mesh
