// Misses: counts why this client's lookups ended before their last key.
//
// Client::Find calls it, and only for a lookup that has missed, so that a hit costs nothing more.
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

#include "client/connection/link.h"
#include "client/declared_models.h"
#include "client/peers/peers.h"
#include "client/stats/atomic_stats.h"
#include "kvclient/match.h"

namespace kvm {

class Misses {
 public:
  // All outlive this.
  Misses(AtomicStats& stats, const Link& link, PeerTable& peers, const DeclaredModels& models)
      : stats_(stats), link_(link), peers_(peers), models_(models) {}

  // `end`: kComplete of a lookup without keys. `found`: how many of its keys were.
  void Note(MatchEnd end, std::size_t found) noexcept;

 private:
  // Whether a model is served that is nearly one of this client's. The tables are read once a
  // second at most: a client that misses looks up often.
  bool OtherModelServes() noexcept;

  AtomicStats& stats_;
  const Link& link_;
  PeerTable& peers_;
  const DeclaredModels& models_;
  std::atomic<std::int64_t> looked_ms_{0};  // steady clock; 0: never
  std::atomic<bool> other_serves_{false};
};

}  // namespace kvm
