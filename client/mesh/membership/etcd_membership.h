// EtcdMembership: the nodes of this node's domain that have an entry in etcd, and this node's own.
//
// The list is read once, and then followed by a watch from its revision; after a lost connection
// the watch goes on from the last revision that was seen. Only if etcd has compacted that one, or
// is another etcd, the list is read again. While etcd is away the members known so far stay.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <optional>

#include "client/mesh/membership/etcd_members.h"
#include "client/mesh/membership/etcd_registration.h"
#include "client/mesh/membership/membership.h"

namespace kvm::mesh {

class EtcdMembership final : public Membership {
 public:
  struct Self {
    std::string node;
    std::string address;                  // where peers connect to this node
    bool any_machine = false;             // as CheckReachable has it
    std::function<std::string()> domain;  // empty as long as it is not known
  };

  // kInvalidArgument: a file of `settings` is not good, or `self.address` is not one that peers can
  // connect to.
  [[nodiscard]] static Result<std::unique_ptr<EtcdMembership>> Create(boost::asio::io_context& io, const EtcdSettings& settings, Self self);

  std::string_view name() const noexcept override { return "etcd"; }
  void Start(Changed changed) override;
  // TLS files and credentials, for the connections from now on.
  void Reload() override;
  Awaitable<void> Leave(Time deadline) override;
  void Describe(kvmmesh::Status& out) const override;

 private:
  EtcdMembership(boost::asio::io_context& io, const EtcdSettings& settings, Self self, EtcdAccess access);

  Awaitable<void> Follow();
  Awaitable<void> KnowDomain();
  Awaitable<Status> List();
  // Until it is time for another one, or the list has to be read again.
  Awaitable<Status> Watch();
  // The first message of a watch. kUnavailable: of another etcd, or one that is behind.
  Status Begun(const EtcdWatchMessage& message);
  void Take(const EtcdPair& event);
  void Worked();
  void Report(bool changed);
  void WaitForDepartures();
  // Members that vanish now may only have lost their leases.
  void Forgive();
  // etcd may have lost others' leases with this node's.
  void ForgiveIfLeaseIsOld();

  boost::asio::io_context& io_;
  const EtcdSettings settings_;
  const Self self_;
  const std::chrono::seconds ttl_;
  EtcdAccess access_;
  EtcdLink link_;
  boost::asio::steady_timer departures_;
  std::optional<EtcdMembers> members_;  // once the domain is known
  std::optional<EtcdRegistration> registration_;
  Changed changed_;
  std::uint64_t revision_ = 0;  // that the members are of; 0: they have to be listed
  std::uint64_t cluster_ = 0;
  std::uint64_t lists_ = 0;
  bool leaving_ = false;
};

}  // namespace kvm::mesh
