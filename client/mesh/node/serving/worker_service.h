// WorkerService: answers what workers of this node, and kvctl, ask over the Unix socket: joins, and
// questions about the state of this process and its peers; takes what they tell of blocks. One for
// each connection; owns nothing. Of the io_context's thread.
#pragma once

#include <memory>

#include "client/mesh/node/peers/peer_list.h"
#include "client/mesh/node/serving/join_service.h"
#include "client/mesh/node/serving/node_status.h"
#include "client/mesh/node/serving/waiting_channels.h"
#include "client/mesh/node/state/node_state.h"

namespace kvm::mesh {

class WorkerService {
 public:
  // `waiting`: of all connections of workers.
  WorkerService(NodeState& node, JoinService& joins, const PeerList& peers, const NodeStatus& status, WaitingChannels& waiting)
      : node_(node), joins_(joins), peers_(peers), status_(status), waiting_(waiting) {}

  // Requests of one connection, until it ends.
  Awaitable<void> Serve(std::shared_ptr<Channel> channel);

 private:
  Awaitable<Result<Received>> NextRequest(std::shared_ptr<Channel> channel);
  // False: a message that is no request.
  Awaitable<bool> Answer(const kvmmesh::LocalMessage& request, kvmmesh::LocalMessage& answer);
  void TakeDescription(const kvmmesh::Describe& request, kvmmesh::Described& out);
  void Find(const kvmmesh::FindQuery& query, kvmmesh::FindAnswer& out) const;
  void Explain(const kvmmesh::ExplainQuery& query, kvmmesh::ExplainAnswer& out) const;

  NodeState& node_;
  JoinService& joins_;
  const PeerList& peers_;
  const NodeStatus& status_;
  WaitingChannels& waiting_;  // for a request
};

}  // namespace kvm::mesh
