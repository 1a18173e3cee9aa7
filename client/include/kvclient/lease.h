// Lease: kvmd's promise to keep the blocks of a match for a time.
//
// kvmd can promise only to keep blocks in memory of its own: in its host cache, and in regions of
// processes that have ended. A block that only living workers have can't be leased, since its owner
// rewrites it without asking kvmd; a lease covers the leading blocks up to the first such block.
// Until it ends, kvmd does not evict them, drop their entries to make room, or free their memory.
//
// A lease ends when it is released or destroyed, when its time is over, with the connection (so
// also when kvmd restarts), and with this process. It can lose blocks before that: when a process
// adopts a dead process's region, when a process registers a region with the dead region's name or
// with blocks of another size, or when an operator runs `kvctl reclaim --force`. Then blocks()
// decreases.
//
// A lease does not replace the check: an import validates generations as always, and reports a
// block that was rewritten as failed. A lease keeps kvmd's copy of a block, and a match may name a
// worker's copy of the same block. If the import from the worker fails, call Find again; it finds
// kvmd's copy.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>

#include "kvclient/types.h"

namespace kvm {

// Made by Client::AcquireLease. Movable. blocks(), valid(), left() and reason() may be called from
// any thread at any time and never wait; Renew and Release from one thread at a time, and not while
// the lease is moved from or destroyed. A lease may outlive its Client; then it covers no block.
class Lease {
 public:
  Lease() noexcept;  // covers nothing
  ~Lease();          // releases, without waiting
  Lease(Lease&&) noexcept;
  Lease& operator=(Lease&&) noexcept;  // releases the blocks of the previous lease
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  // Whether the lease covers any block, as far as this process knows. kvmd never ends a lease
  // earlier than this says, but the message that blocks were lost, or that kvmd died, may still be
  // on its way.
  bool valid() const noexcept { return blocks() > 0; }
  // Leading blocks of the match that the lease covers now; 0 once it is over.
  std::size_t blocks() const noexcept;
  // Why the lease covers no more blocks than blocks(). Its message is empty if the lease covers all
  // blocks of the match. kUnsupported: the next one is in memory of living workers only. kStale: it
  // has been rewritten or evicted.
  // kResourceExhausted: a limit of kvmd, the option named. kNotFound: the lease's time is over, or
  // it has lost blocks. kUnavailable: the connection has ended. kCancelled: it was released, or its
  // client is closed.
  Error reason() const;
  // The time until it ends by itself; 0 once it is over.
  std::chrono::milliseconds left() const noexcept;

  // Makes the lease end `ttl` from now, which may be sooner or later than before. Waits for kvmd.
  // kNotFound: the lease had ended. kInvalidArgument: `ttl` is not positive, or more than kvmd's
  // --max-lease-ttl-s. kUnavailable: not connected.
  // kDeadlineExceeded: no answer in time; for this process the lease then ends at the earlier of
  // both times.
  [[nodiscard]] Status Renew(std::chrono::milliseconds ttl, Deadline deadline);
  // Ends it. Does not wait for kvmd.
  void Release() noexcept;

  struct Impl;  // libkvclient's own
  explicit Lease(std::shared_ptr<Impl> impl) noexcept;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvm
