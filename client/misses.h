// Misses: counts why this client's lookups ended before their last key, and keeps the last few, so
// that kvctl can explain them without knowing tokens.
//
// Client::Find calls it, and only for a lookup that has missed, so that a hit costs nothing more;
// Client::Impl's link thread takes what kvmd is told. Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>

#include "client/connection/link.h"
#include "client/declared_models.h"
#include "client/peers/peers.h"
#include "client/stats/atomic_stats.h"
#include "kvclient/match.h"
#include "kvm/block_key.h"
#include "proto/base/thread_safety.h"
#include "proto/wire/protocol_limits.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

class Misses {
 public:
  // All outlive this.
  Misses(AtomicStats& stats, const Link& link, PeerTable& peers, const DeclaredModels& models)
      : stats_(stats), link_(link), peers_(peers), models_(models) {}

  // `end`: kComplete of a lookup without keys. `found`: how many of `keys` were.
  void Note(MatchEnd end, std::size_t found, std::span<const BlockKey> keys) noexcept;

  // Adds the last misses to what kvmd is told, the newest last.
  void Report(kvmwire::StatsReport& report) const KVM_EXCLUDES(mutex_);

 private:
  struct Miss {
    kvmwire::MissReason reason = kvmwire::MISS_ABSENT;
    std::uint64_t at_ms = 0;
    std::uint32_t times = 0, keys = 0, found = 0;
    BlockKey key;  // the first that was not found; zeros of a lookup without keys
  };

  kvmwire::MissReason Count(MatchEnd end, std::size_t found) noexcept;
  void Remember(kvmwire::MissReason reason, std::size_t found, std::span<const BlockKey> keys) noexcept KVM_EXCLUDES(mutex_);
  // Whether a model is served that is nearly one of this client's. The tables are read once a
  // second at most: a client that misses looks up often.
  bool OtherModelServes() noexcept;

  AtomicStats& stats_;
  const Link& link_;
  PeerTable& peers_;
  const DeclaredModels& models_;
  std::atomic<std::int64_t> looked_ms_{0};  // steady clock; 0: never
  std::atomic<bool> other_serves_{false};
  mutable Mutex mutex_;
  std::array<Miss, kMaxRecentMisses> last_ KVM_GUARDED_BY(mutex_);
  // All of them; the next one's place, modulo the size
  std::size_t noted_ KVM_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvm
