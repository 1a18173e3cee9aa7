// BlockPool: a pool of blocks, recycled by an eviction policy. It models a worker's local cache.
//
// A request uses the policy as `kvctl simulate` does (simulated_cache.h), so both hit the same
// blocks at the same capacity. The policy's slots are not the pool's blocks: if the policy evicts a
// key that the request has found, and inserts it again, the key keeps its block.
//
// Invariants between requests: a key is held by at most one block, a block holds at most one key,
// and once the pool is full every block holds one. Not thread-safe. After construction, it
// allocates memory only for the key index and for requests that are longer than all before.
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
    std::uint32_t held = kNoBlock;  // the block that held the key when the request came
    // The block that holds the key from now on, to be written if it is not `held`. kNoBlock: the
    // policy has evicted the key
    std::uint32_t kept = kNoBlock;
  };

  // `blocks` in [1, policy::kMaxCapacity].
  BlockPool(policy::PolicyKind kind, std::uint32_t blocks);

  std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(slots_.size()); }
  std::size_t held() const noexcept { return slot_of_.size(); }
  // Keys that were evicted for other keys, of other requests or of the same one
  std::uint64_t evictions() const noexcept { return evictions_; }

  // Serves a request's blocks, in prefix order and each once; there may be more than the pool has.
  // Returns one place for each key, valid until the next call. A `held` block may be the block to
  // which another key of the same request is written, so read its content first.
  std::span<const Place> Serve(std::span<const BlockKey> keys);

  // The number of leading places that held their key.
  static std::size_t Hits(std::span<const Place> places) noexcept;

 private:
  struct Entry {
    BlockKey key;
    std::uint32_t block = kNoBlock;  // kNoBlock: determined at the end of the request
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
  // The following belong to the request that is being served.
  std::vector<policy::Block> path_;
  std::vector<Place> places_;
  // Blocks whose slot went to another key; some of them are used again later
  std::vector<std::uint32_t> left_;
  std::vector<bool> leaves_;  // [blocks], whether a block of left_ is still to be freed
};

}  // namespace kvm::ctl
