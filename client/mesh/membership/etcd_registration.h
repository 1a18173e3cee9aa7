// EtcdRegistration: this node's entry in etcd, and the lease that it ends with.
//
// A lease that was lost is replaced, and the entry put again. An entry of another process under
// this node's name is not replaced, so of two nodes with one name the second one says so and is
// not listed until the first has gone. An entry of this node's own address is one of an earlier
// process of this node, whose lease has not ended yet: the first entry of a process replaces it.
//
// EtcdMembership owns one. Of the io_context's thread.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <string>

#include "client/mesh/membership/etcd_link.h"
#include "client/mesh/membership/etcd_messages.h"

namespace kvm::mesh {

class EtcdRegistration {
 public:
  enum class State { kNotRegistered, kRegistered, kNameTaken };

  EtcdRegistration(boost::asio::io_context& io, const EtcdAccess& access, std::string key, EtcdEntry own, std::chrono::seconds ttl);

  // Until Leave.
  Awaitable<void> Run();
  // The entry as etcd has it; null: it has none. What is not as it should be is looked into at
  // once.
  void Seen(const EtcdPair* pair);
  // Ends the lease, and with it the entry. Nothing is written afterwards.
  Awaitable<void> Leave(Time deadline);

  State state() const noexcept { return state_; }
  const std::string& last_error() const noexcept { return link_.last_error(); }
  // False: etcd may have lost the lease that this node had, and so those of others.
  bool RenewedLately(Time now) const noexcept { return renewed_ == Time() || now - renewed_ <= ttl_ * 2 / 3; }

  // How long etcd may take for one answer; how long the pauses between tries may become, so that a
  // node is back before its lease has ended.
  static std::chrono::milliseconds RequestTimeout(std::chrono::seconds ttl) noexcept;
  static std::chrono::milliseconds LongestPause(std::chrono::seconds ttl) noexcept;

 private:
  // One look: the lease is renewed, or made, and the entry put if it is not known to be there.
  Awaitable<Status> Round();
  Awaitable<Status> Renew();
  Awaitable<Status> Grant();
  Awaitable<Status> Put();
  Awaitable<Result<boost::json::object>> Ask(std::string path, boost::json::object request);
  void TakenBy(const EtcdEntry& other);

  boost::asio::io_context& io_;
  const EtcdAccess& access_;
  const std::string key_;
  const EtcdEntry own_;
  const std::chrono::seconds ttl_;
  EtcdLink link_;
  boost::asio::steady_timer pause_;
  State state_ = State::kNotRegistered;
  std::uint64_t lease_ = 0;  // 0: none
  Time renewed_{};
  bool ever_registered_ = false, leaving_ = false;
  std::uint64_t taken_by_ = 0;  // instance that was logged
};

}  // namespace kvm::mesh
