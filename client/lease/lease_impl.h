// What a Lease knows.
//
// The link's thread changes it when kvmd has answered, when it takes blocks away, and when the
// connection ends; the engine's threads ask, renew and release.
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
  const std::weak_ptr<Leases> leases;  // its client's

  Mutex mutex;
  std::condition_variable answered;
  bool waiting KVM_GUARDED_BY(mutex) = false;   // for an answer
  bool released KVM_GUARDED_BY(mutex) = false;  // what an answer brings from now on is let go of
  std::uint64_t id KVM_GUARDED_BY(mutex) = 0;   // 0: kvmd has not made it
  std::size_t blocks KVM_GUARDED_BY(mutex) = 0;
  Deadline expires KVM_GUARDED_BY(mutex){};
  Error reason KVM_GUARDED_BY(mutex);  // an empty message: there is none

  // What is leased at `now`.
  std::size_t BlocksAt(Deadline now) const noexcept KVM_REQUIRES(mutex) { return now < expires ? blocks : 0; }
  void End(const Error& why) KVM_EXCLUDES(mutex);
};

}  // namespace kvm
