// Source: where a join can get blocks from that this node does not have in memory: a peer, or the
// disk. JoinService asks one after another, as ChooseSource says. Of the io_context's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "client/mesh/memory/shape.h"
#include "client/mesh/memory/slot_pool.h"
#include "client/mesh/sources/source_choice.h"
#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

// What JoinService wants from a source. What it refers to lives until Fetch has ended.
struct FetchJob {
  BlockShape shape;
  std::span<const BlockKey> keys;  // consecutive ones of a prefix
  BlockKey parent;                 // the key before them; zeros: they begin the prefix
  std::uint32_t depth = 0;         // blocks before them in the prefix
  std::shared_ptr<SlotPool> pool;
  Time deadline;
};

struct FetchOutcome {
  std::size_t fetched = 0;    // leading blocks that were received, checked and published
  std::size_t from_disk = 0;  // of them, those that a peer had on its disk
  std::string reason;         // why there are no more; empty: all
};

class Source {
 public:
  virtual ~Source() = default;
  virtual const std::string& name() const noexcept = 0;
  // Whether a join's `hint`, which is not empty, names it (JoinOptions::source_hint).
  virtual bool IsNamed(const std::string& hint) const = 0;
  // What it is worth for a prefix of which the node has the first `local` blocks.
  virtual Candidate Consider(std::span<const BlockKey> keys, std::size_t local) const = 0;
  // Never an error: fewer blocks, and a reason. Ends by the deadline.
  virtual Awaitable<FetchOutcome> Fetch(FetchJob job) = 0;
};

}  // namespace kvm::mesh
