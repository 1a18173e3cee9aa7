// A pool of blocks, recycled least recently used first: what a worker keeps locally, and the model of a
// worker that shares nothing.
//
// Invariants: a key is held by at most one block. A block is pinned (in use by the running request) or in
// the order of use, never both. Requests release their blocks from last to first, so that within one
// prefix the tail is always older than what it depends on and leaves first: the pool stays closed under
// prefixes. Not thread-safe. No allocation after construction but the key index's.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "kvm/block_key.h"

namespace kvm::ctl {

class BlockPool {
 public:
  explicit BlockPool(std::uint32_t blocks);

  std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(nodes_.size()); }
  std::uint64_t evictions() const noexcept { return evictions_; }
  std::size_t held() const noexcept { return index_.size(); }

  // The block that holds `key`, pinned now; nothing if no block does. Each block is to be pinned at most
  // once at a time.
  std::optional<std::uint32_t> PinHeld(const BlockKey& key);

  // A block to write to, pinned; its old content is forgotten. Nothing if all blocks are pinned.
  std::optional<std::uint32_t> Allocate();

  // From now on the pinned `block` holds `key`. False, and nothing changed, if another block does already.
  bool Assign(std::uint32_t block, const BlockKey& key);

  // Ends a request: its pinned blocks, in prefix order, become the most recently used ones, the first
  // one last to leave. Those that were never assigned a key become the next to be allocated.
  void Release(std::span<const std::uint32_t> blocks);

 private:
  static constexpr std::uint32_t kNone = 0xFFFFFFFF;
  struct Node {
    BlockKey key;
    std::uint32_t older = kNone, newer = kNone;
    bool has_key = false;
    bool pinned = false;
  };

  void Unlink(std::uint32_t block);
  void LinkNewest(std::uint32_t block);
  void LinkOldest(std::uint32_t block);

  std::vector<Node> nodes_;
  std::unordered_map<BlockKey, std::uint32_t> index_;
  std::uint32_t oldest_ = kNone, newest_ = kNone;
  std::uint64_t evictions_ = 0;
};

}  // namespace kvm::ctl
