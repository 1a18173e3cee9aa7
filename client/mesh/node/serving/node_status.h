// NodeStatus: what this process says of itself and its peers. Owns nothing. Of the io_context's
// thread.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/mesh/membership/membership.h"
#include "client/mesh/node/peers/peer_list.h"
#include "client/mesh/node/state/node_state.h"

namespace kvm::mesh {

class NodeStatus {
 public:
  // `address`: where peers connect.
  NodeStatus(const NodeState& node, const PeerList& peers, const std::vector<std::unique_ptr<Membership>>& memberships,
             const Transfer& transfer, std::string address)
      : node_(node), peers_(peers), memberships_(memberships), transfer_(transfer), address_(std::move(address)) {}

  // All of it, for this user and root.
  void Describe(kvmmesh::Status& out) const;
  // What metrics are made of, for others: counts, and the names of the domain and the nodes. No
  // address, path or reason.
  void DescribeForMonitors(kvmmesh::Status& out) const;

 private:
  const NodeState& node_;
  const PeerList& peers_;
  const std::vector<std::unique_ptr<Membership>>& memberships_;
  const Transfer& transfer_;
  const std::string address_;
};

}  // namespace kvm::mesh
