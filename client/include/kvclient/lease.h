// Lease: a promise of kvmd's that it will not give up the blocks of a match, for a time.
//
// kvmd can promise what it keeps itself: blocks in its host cache, and in the memory of processes that have ended. A block
// that only living workers have can't be held, since its owner rewrites it without asking; a lease covers the leading
// blocks up to the first such one. Until it ends, kvmd neither evicts them, nor drops their entries to make room, nor gives up
// the memory they lie in.
//
// It ends when it is released or destroyed, when its time is over, with the connection (so with kvmd's restart, too), and with
// this process. Blocks can be taken from it before that: another process adopts a dead one's region, or registers a new one
// of its name or of blocks of another size, or somebody runs `kvctl reclaim --force`. blocks() falls then.
//
// A lease never replaces the check: an import validates generations as ever, and a block that is not what was found is
// reported as failed. Nor does it pin a source: a match may name a worker's own copy of a block of which kvmd has another. If
// its import fails there, Find again; the held copy is found.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>

#include "kvclient/types.h"

namespace kvm {

// Made by Client::AcquireLease. Movable. blocks(), valid(), left() and reason() may be called from any thread at any time and never
// wait; Renew and Release from one thread at a time, and not while it is moved from or destroyed. May outlive its Client,
// and holds nothing then.
class Lease {
 public:
  Lease() noexcept;  // holds nothing
  ~Lease();          // releases, without waiting
  Lease(Lease&&) noexcept;
  Lease& operator=(Lease&&) noexcept;  // releases what was held before
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  // Whether anything is held, as far as this process knows: kvmd's own end of a lease never comes before the one told here,
  // but the news of blocks that were taken away, or of kvmd's death, may still be on its way.
  bool valid() const noexcept { return blocks() > 0; }
  // Leading blocks of the match that are held now; 0 once the lease is over.
  std::size_t blocks() const noexcept;
  // Why no more blocks than blocks() are held. Empty message: all of them are. kUnsupported: the next one is in memory of
  // living workers only. kStale: it has been rewritten or given up. kResourceExhausted: a limit of kvmd's, the option named.
  // kNotFound: the lease's time is over, or blocks were taken from it. kUnavailable: the connection has ended. kCancelled: it
  // was released, or its client is closed.
  Error reason() const;
  // Until it ends by itself; 0 once it is over.
  std::chrono::milliseconds left() const noexcept;

  // Ends `ttl` from now instead, which may be sooner or later than before. Waits for kvmd. kNotFound: it was over.
  // kInvalidArgument: no time, or more than kvmd's --max-lease-ttl-s. kUnavailable: not connected. kDeadlineExceeded: no answer
  // in time; it then ends at the earlier of both times, as far as this process knows.
  [[nodiscard]] Status Renew(std::chrono::milliseconds ttl, Deadline deadline);
  // Ends it. Does not wait; kvmd hears of it next.
  void Release() noexcept;

  struct Impl;  // libkvclient's own
  explicit Lease(std::shared_ptr<Impl> impl) noexcept;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvm
