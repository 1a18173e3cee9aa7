// PeerChannels: the connections to one peer. A new one is opened with a handshake and hellos, which
// establish that the peer is the node that the configuration names, of this node's domain. Those
// that a transfer has done with are kept for the next one for a while.
//
// Peer owns one. Of the io_context's thread.
#pragma once

#include <memory>
#include <vector>

#include "client/mesh/node/state/config.h"
#include "client/mesh/node/state/node_state.h"
#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

class PeerChannels {
 public:
  PeerChannels(NodeState& node, Transfer& transfer, const PeerConfig& config) : node_(node), transfer_(transfer), config_(config) {}

  // A new one. kUnavailable, kDeadlineExceeded. kPermissionDenied: another node, another domain, or
  // a certificate was refused. kVersionMismatch, kProtocol.
  Awaitable<Result<std::shared_ptr<Channel>>> Open(Time deadline);
  // One that was given back; null: there is none. The peer may have closed it meanwhile.
  std::shared_ptr<Channel> TakeIdle();
  // After a transfer that has ended as the protocol wants.
  void GiveBack(std::shared_ptr<Channel> channel);
  // Closes those that are in no use: the peer has closed one like them.
  void DropIdle() noexcept { idle_.clear(); }

 private:
  struct Idle {
    std::shared_ptr<Channel> channel;
    Time since;
  };

  Awaitable<Status> Greet(std::shared_ptr<Channel> channel, Time deadline);

  NodeState& node_;
  Transfer& transfer_;
  const PeerConfig& config_;
  std::vector<Idle> idle_;
};

}  // namespace kvm::mesh
