// What a Lease knows, and the leases of a client.
//
// The link's thread changes a lease when kvmd has answered, when it takes blocks away, and when the connection ends; the
// engine's threads ask, extend and release. Order of locks: Lease::Impl::mutex → LeaseList' own.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "client/connection/link.h"
#include "client/connection/owner_process.h"
#include "kvclient/lease.h"

namespace kvm {

struct Lease::Impl {
  const OwnerProcess process;
  std::weak_ptr<Client::Impl> client;

  std::mutex mutex;
  std::condition_variable answered;
  bool waiting = false;   // for an answer
  bool released = false;  // what an answer brings from now on is let go of
  std::uint64_t id = 0;   // 0: kvmd has not made it
  std::size_t blocks = 0;
  Deadline expires{};
  Error reason;  // an empty message: there is none

  // What is held at `now`. The mutex is held.
  std::size_t BlocksAt(Deadline now) const noexcept { return now < expires ? blocks : 0; }
  void End(const Error& why);
};

// Leases of the connection there is, by kvmd's number. Thread-safe.
class LeaseList {
 public:
  void Add(std::uint64_t id, const std::shared_ptr<Lease::Impl>& lease);
  void Remove(std::uint64_t id);
  void Cut(const kvmwire::LeaseShrunk& cut);
  void EndAll(const Error& why);

 private:
  std::mutex mutex_;
  std::unordered_map<std::uint64_t, std::weak_ptr<Lease::Impl>> leases_;
};

}  // namespace kvm
