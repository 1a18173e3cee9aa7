// EvictionPolicy: which block leaves a full cache. A policy only chooses: the owner of the cache
// (kvmd's host cache, kvctl's simulator and replays) moves the bytes and reports what happened.
//
// A cache is `capacity` slots. For each request, or each batch of blocks of one prefix:
//
//   OnRequest(path)                   all blocks from the first on, whether resident or not
//   for each block, in order():
//     resident:  OnHit(slot)
//     else:      if the cache is full: ChooseVictim() → OnErase(victim)
//                OnInsert(slot, block)
//
// OnErase may be called at any time for any resident slot: a block was rewritten, or an owner died.
// A request may be longer than the cache. Single-threaded. A policy allocates all its memory when
// it is made, by capacity.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

namespace kvm::policy {

using Slot = std::uint32_t;  // in [0, capacity)
inline constexpr Slot kNoSlot = ~Slot{0};

// Any 64 bits of a BlockKey, which is a hash. If two blocks have the same bits, choices get worse
// and nothing else happens.
using Key = std::uint64_t;
inline constexpr Key kNoKey = 0;

struct Block {
  Key key = kNoKey;
  // Of the block before it in the prefix; kNoKey: it is the first, or not known
  Key parent = kNoKey;
  std::uint32_t depth = 0;  // blocks before it in the prefix
};

// Whether a slot may be evicted now.
using Evictable = std::function<bool(Slot)>;
// How many slots ChooseVictimAmong looks at, at most.
inline constexpr std::uint32_t kMaxVictimsLookedAt = 4096;

// The order in which a request's blocks are reported. A policy that orders by time alone must be
// told of the last block first, so that the ends of prefixes leave first.
enum class Order { kFirstToLast, kLastToFirst };

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  virtual std::string_view name() const noexcept = 0;
  virtual Order order() const noexcept = 0;
  // Whether it matters how often a block is used, and not only when.
  virtual bool counts_uses() const noexcept { return true; }

  virtual void OnRequest(std::span<const Block> /*path*/) {}
  virtual void OnInsert(Slot slot, const Block& block) = 0;  // `slot` is free
  virtual void OnHit(Slot slot) = 0;
  virtual void OnErase(Slot slot) = 0;

  // A resident slot, kNoSlot if nothing is resident. It stays resident until OnErase.
  virtual Slot ChooseVictim() = 0;
  // Chooses the first slot, in the policy's order, that may be evicted. kNoSlot: none of the slots
  // that it looked at may be.
  virtual Slot ChooseVictimAmong(const Evictable& evictable) = 0;
};

}  // namespace kvm::policy
