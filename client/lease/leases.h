// The leases of a client: acquires, renews and releases them, and ends them with the connection.
//
// Lease calls Renew and Release; the client calls the rest, Cut and EndAll on the link's thread.
// Leases belong to those who hold them: what is listed here, by kvmd's number, is weak. Order of
// locks: Lease::Impl::mutex, then mutex_.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>

#include "client/connection/link.h"
#include "client/lease/lease_impl.h"
#include "client/peers/peers.h"
#include "kvclient/match.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Thread-safe.
class Leases {
 public:
  Leases(Link& link, const PeerTable& peers) : link_(link), peers_(peers) {}
  Leases(const Leases&) = delete;
  Leases& operator=(const Leases&) = delete;

  // `self`: this, as leases hold it. Before everything else.
  void Start(std::weak_ptr<Leases> self) { self_ = std::move(self); }

  // As kvmd wants it. kInvalidArgument: none at all.
  [[nodiscard]] static Result<std::uint32_t> TtlMs(std::chrono::milliseconds ttl);
  // As Client::AcquireLease.
  [[nodiscard]] Result<Lease> Acquire(const Match& match, std::chrono::milliseconds ttl, Deadline deadline);
  // As Lease::Renew, of a lease that holds something.
  [[nodiscard]] Status Renew(Lease::Impl& lease, std::chrono::milliseconds ttl, Deadline deadline);
  // Forgets it and tells kvmd.
  void Release(std::uint64_t id) KVM_EXCLUDES(mutex_);

  void Cut(const kvmwire::LeaseShrunk& cut) KVM_EXCLUDES(mutex_);
  void EndAll(const Error& why) KVM_EXCLUDES(mutex_);

 private:
  [[nodiscard]] Status AcquireSome(const std::shared_ptr<Lease::Impl>& lease, kvmwire::ClientMessage message, Deadline expires,
                                   Deadline deadline);
  void Add(std::uint64_t id, const std::shared_ptr<Lease::Impl>& lease) KVM_EXCLUDES(mutex_);

  Link& link_;
  const PeerTable& peers_;
  std::weak_ptr<Leases> self_;

  Mutex mutex_;
  std::unordered_map<std::uint64_t, std::weak_ptr<Lease::Impl>> leases_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
