// A pool of blocks, recycled by an eviction policy: what a worker keeps locally, and the model of a worker that
// shares nothing.
//
// A request uses the policy as `kvctl simulate` does (simulated_cache.h), so both hit the same blocks at the same
// capacity. The policy's slots are not the pool's blocks: a key that a request finds and that the policy evicts and takes
// in again keeps its block.
//
// Invariants between requests: a key is held by at most one block, a block holds at most one key, and once the
// pool is full every block holds one. Not thread-safe. No allocation after construction but the key index's and
// what the longest request so far took.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "daemon/policy/policies.h"
#include "kvm/block_key.h"

namespace kvm::ctl {

class BlockPool {
 public:
  static constexpr std::uint32_t kNoBlock = std::numeric_limits<std::uint32_t>::max();

  // Where one block of a request is.
  struct Place {
    std::uint32_t held = kNoBlock;  // held the key when the request came
    std::uint32_t kept = kNoBlock;  // holds the key from now on; to be written if it is not `held`. kNoBlock: the policy lets it go
  };

  // `blocks` in [1, policy::kMaxCapacity].
  BlockPool(policy::PolicyKind kind, std::uint32_t blocks);

  std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(slots_.size()); }
  std::size_t held() const noexcept { return slot_of_.size(); }
  std::uint64_t evictions() const noexcept { return evictions_; }  // keys that left for others, or for the rest of their own request

  // Takes in a request's blocks, in prefix order and each once, whether the pool has that many or not. The places, one a
  // key, are valid until the next call. A block of `held` may be the place to write another key of the same request to: look at its
  // content first.
  std::span<const Place> Serve(std::span<const BlockKey> keys);

  // Leading places that held their key.
  static std::size_t Hits(std::span<const Place> places) noexcept;

 private:
  struct Entry {
    BlockKey key;
    std::uint32_t block = kNoBlock;  // kNoBlock: found at the end of the request
  };

  void Use(const BlockKey& key, const policy::Block& block, std::uint32_t held);
  policy::Slot Evict();
  void SettlePlaces(std::span<const BlockKey> keys);

  std::unique_ptr<policy::EvictionPolicy> policy_;
  std::vector<Entry> slots_;  // [capacity], the policy's
  std::unordered_map<BlockKey, policy::Slot> slot_of_;
  std::vector<std::uint32_t> free_;  // blocks
  std::uint32_t filled_ = 0;         // slots used so far
  std::uint64_t evictions_ = 0;
  // Of the request being served.
  std::vector<policy::Block> path_;
  std::vector<Place> places_;
  std::vector<std::uint32_t> left_;  // blocks whose slot was given away, some of them taken back
  std::vector<bool> leaves_;         // [blocks], whether one of left_ is still to leave
};

}  // namespace kvm::ctl
