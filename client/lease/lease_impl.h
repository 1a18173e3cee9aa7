// The state of a Lease.
//
// The link's thread changes it when kvmd has answered, when kvmd revokes blocks, and when the
// connection ends. The engine's threads read, renew and release it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>

#include "client/connection/owner_process.h"
#include "kvclient/lease.h"
#include "proto/base/thread_safety.h"

namespace kvm {

class Leases;

struct Lease::Impl {
  explicit Impl(std::weak_ptr<Leases> its_leases) : leases(std::move(its_leases)) {}

  const OwnerProcess process;
  const std::weak_ptr<Leases> leases;  // the leases of its client

  Mutex mutex;
  std::condition_variable answered;
  bool waiting KVM_GUARDED_BY(mutex) = false;  // for kvmd's answer
  // If a later answer grants a lease, it is released at once
  bool released KVM_GUARDED_BY(mutex) = false;
  std::uint64_t id KVM_GUARDED_BY(mutex) = 0;  // 0: kvmd has not granted it yet
  std::size_t blocks KVM_GUARDED_BY(mutex) = 0;
  Deadline expires KVM_GUARDED_BY(mutex){};
  Error reason KVM_GUARDED_BY(mutex);  // its message is empty if there is none

  // How many blocks are leased at `now`.
  std::size_t BlocksAt(Deadline now) const noexcept KVM_REQUIRES(mutex) { return now < expires ? blocks : 0; }
  void End(const Error& why) KVM_EXCLUDES(mutex);
};

}  // namespace kvm
