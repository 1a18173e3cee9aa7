// EtcdMembers: the members that etcd has listed, and those that have left its list but are kept for
// a while.
//
// etcd loses leases when it has been away, or when it is a new one without data. Members that
// vanish then have mostly not ended: they register again within the time of a lease. So members
// that vanish before KeepUntil's time are kept until then, and those that vanish later leave at
// once. Not thread-safe; no input or output but the log.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "client/mesh/membership/etcd_messages.h"

namespace kvm::mesh {

class EtcdMembers {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr std::size_t kMaxMembers = 2048;

  // `any_machine`: as CheckReachable has it.
  EtcdMembers(const std::string& prefix, std::string domain, const std::string& own_node, bool any_machine);

  const std::string& directory() const noexcept { return directory_; }
  const std::string& own_key() const noexcept { return own_key_; }

  // The following return whether list() has changed. An entry that can't be used is left out, and
  // logged once; its node keeps the address that it had.
  bool Replace(const std::vector<EtcdPair>& pairs, bool more, Time now);
  bool Apply(const EtcdPair& pair, Time now);
  bool Depart(Time now);  // removes those whose time has come

  // Members that vanish before `time`, and those that are leaving, are kept until then.
  void KeepUntil(Time time) noexcept;
  // When the next one is to be removed.
  std::optional<Time> NextDeparture() const noexcept;

  // Without this node; by name.
  std::vector<Member> list() const;
  std::size_t leaving() const noexcept;
  // There are more members than kMaxMembers, so a list may have others.
  bool left_out() const noexcept { return left_out_; }

 private:
  struct Known {
    Member member;
    std::optional<Time> leaves;
  };

  bool Put(const EtcdPair& pair);
  bool Remove(std::map<std::string, Known>::iterator at, Time now);
  void Skip(const EtcdPair& pair, const std::string& reason);

  const std::string domain_, directory_, own_key_;
  const bool any_machine_;
  std::map<std::string, Known> known_;  // by key
  std::set<std::string> skipped_;       // keys that were logged
  bool left_out_ = false;               // too many members: logged
  Time keep_until_{};
};

}  // namespace kvm::mesh
