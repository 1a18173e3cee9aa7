// Membership: which other nodes there are, and where they listen. Implementations: a list in the
// configuration (StaticMembership) and etcd (EtcdMembership). Several may run beside each other.
//
// What a membership says is a hint: a peer proves to be the node that it is taken for when it is
// connected to (PeerChannels). Of the io_context's thread.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "client/mesh/membership/member.h"
#include "client/mesh/transfer/transfer.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::mesh {

class Membership {
 public:
  using Changed = std::function<void(const std::vector<Member>& members)>;

  virtual ~Membership() = default;
  // "static" or "etcd".
  virtual std::string_view name() const noexcept = 0;
  // Calls `changed` with all members, now or once they are known, and after each change, in turns
  // of the io_context, for as long as it runs. Called once.
  virtual void Start(Changed changed) = 0;
  // Reads files again that it depends on. What can't be read stays as it was.
  virtual void Reload() = 0;
  // This node ends: takes it off a list that others read. Returns at `deadline` at the latest, and
  // nothing is written there afterwards.
  virtual Awaitable<void> Leave(Time deadline) = 0;
  virtual void Describe(kvmmesh::Status& out) const = 0;
};

}  // namespace kvm::mesh
