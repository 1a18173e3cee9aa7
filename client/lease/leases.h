// The leases of a client: acquires, renews and releases them, and ends them with the connection.
//
// Lease calls Renew and Release; the client calls the rest, Cut and EndAll on the link's thread.
// The callers own their Lease objects; the map here, by kvmd's number, has weak references. Order
// of locks: Lease::Impl::mutex, then mutex_.
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

  // `self`: a weak reference to this object, for its leases. To be called before any other method.
  void Start(std::weak_ptr<Leases> self) { self_ = std::move(self); }

  // The time in the unit of the wire format. kInvalidArgument: it is not positive.
  [[nodiscard]] static Result<std::uint32_t> TtlMs(std::chrono::milliseconds ttl);
  // See Client::AcquireLease.
  [[nodiscard]] Result<Lease> Acquire(const Match& match, std::chrono::milliseconds ttl, Deadline deadline);
  // See Lease::Renew. Precondition: the lease covers a block.
  [[nodiscard]] Status Renew(Lease::Impl& lease, std::chrono::milliseconds ttl, Deadline deadline);
  // Removes the lease from the map, and tells kvmd.
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
