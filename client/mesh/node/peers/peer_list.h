// PeerList: the peers of a node, as its memberships name them together.
//
// A node that several memberships name has the address of the first of them: the configuration goes
// before etcd. A peer that no membership names any more is stopped; requests that use it go on to
// their own end. Of the io_context's thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "client/mesh/membership/member.h"
#include "client/mesh/node/peers/peer.h"
#include "client/mesh/node/state/node_state.h"
#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

class PeerList {
 public:
  explicit PeerList(NodeState& node) : node_(node) {}

  // Of all peers to come. Called before Update.
  void Use(Transfer& transfer) noexcept { transfer_ = &transfer; }
  // `source`: a membership's name; `rank`: its place among them.
  void Update(std::size_t rank, const std::string& source, const std::vector<Member>& members);

  const std::vector<std::shared_ptr<Peer>>& all() const noexcept { return peers_; }

 private:
  struct Source {
    std::string name;
    std::vector<Member> members;
  };

  // The members of all sources, each node once.
  std::vector<std::pair<Member, std::string>> Merged() const;

  NodeState& node_;
  Transfer* transfer_ = nullptr;
  std::vector<Source> sources_;  // by rank
  std::vector<std::shared_ptr<Peer>> peers_;
};

}  // namespace kvm::mesh
