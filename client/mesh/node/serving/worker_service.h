// WorkerService: answers what workers of this node, and kvctl, ask over the Unix socket: joins, and
// questions about the state of this process and its peers; takes what they tell of blocks. One for
// each connection; owns nothing. Of the io_context's thread.
#pragma once

#include <memory>
#include <vector>

#include "client/mesh/membership/membership.h"
#include "client/mesh/node/peers/peer_list.h"
#include "client/mesh/node/serving/join_service.h"
#include "client/mesh/node/serving/waiting_channels.h"
#include "client/mesh/node/state/node_state.h"

namespace kvm::mesh {

class WorkerService {
 public:
  // `address`: where peers connect. `waiting`: of all connections of workers.
  WorkerService(NodeState& node, JoinService& joins, const PeerList& peers, const std::vector<std::unique_ptr<Membership>>& memberships,
                const Transfer& transfer, std::string address, WaitingChannels& waiting)
      : node_(node),
        joins_(joins),
        peers_(peers),
        memberships_(memberships),
        transfer_(transfer),
        address_(std::move(address)),
        waiting_(waiting) {}

  // Requests of one connection, until it ends.
  Awaitable<void> Serve(std::shared_ptr<Channel> channel);

 private:
  Awaitable<Result<Received>> NextRequest(std::shared_ptr<Channel> channel);
  // False: a message that is no request.
  Awaitable<bool> Answer(const kvmmesh::LocalMessage& request, kvmmesh::LocalMessage& answer);
  void Describe(kvmmesh::Status& out) const;
  void TakeDescription(const kvmmesh::Describe& request, kvmmesh::Described& out);
  void Find(const kvmmesh::FindQuery& query, kvmmesh::FindAnswer& out) const;
  void Explain(const kvmmesh::ExplainQuery& query, kvmmesh::ExplainAnswer& out) const;

  NodeState& node_;
  JoinService& joins_;
  const PeerList& peers_;
  const std::vector<std::unique_ptr<Membership>>& memberships_;
  const Transfer& transfer_;
  const std::string address_;
  WaitingChannels& waiting_;  // for a request
};

}  // namespace kvm::mesh
