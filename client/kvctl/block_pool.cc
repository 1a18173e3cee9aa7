#include "client/kvctl/block_pool.h"

namespace kvm::ctl {

BlockPool::BlockPool(std::uint32_t blocks) : nodes_(blocks) {
  index_.reserve(blocks);
  for (std::uint32_t block = 0; block < blocks; ++block) LinkNewest(block);
}

std::optional<std::uint32_t> BlockPool::PinHeld(const BlockKey& key) {
  const auto found = index_.find(key);
  if (found == index_.end() || nodes_[found->second].pinned) return std::nullopt;
  Unlink(found->second);
  nodes_[found->second].pinned = true;
  return found->second;
}

std::optional<std::uint32_t> BlockPool::Allocate() {
  if (oldest_ == kNone) return std::nullopt;
  const std::uint32_t block = oldest_;
  Unlink(block);
  Node& node = nodes_[block];
  node.pinned = true;
  if (node.has_key) {
    index_.erase(node.key);
    node.has_key = false;
    ++evictions_;
  }
  return block;
}

bool BlockPool::Assign(std::uint32_t block, const BlockKey& key) {
  Node& node = nodes_[block];
  if (!index_.emplace(key, block).second) return false;
  if (node.has_key) index_.erase(node.key);
  node.key = key;
  node.has_key = true;
  return true;
}

void BlockPool::Release(std::span<const std::uint32_t> blocks) {
  for (auto it = blocks.rbegin(); it != blocks.rend(); ++it) {
    Node& node = nodes_[*it];
    if (!node.pinned) continue;
    node.pinned = false;
    if (node.has_key) {
      LinkNewest(*it);
    } else {
      LinkOldest(*it);
    }
  }
}

void BlockPool::Unlink(std::uint32_t block) {
  Node& node = nodes_[block];
  (node.older == kNone ? oldest_ : nodes_[node.older].newer) = node.newer;
  (node.newer == kNone ? newest_ : nodes_[node.newer].older) = node.older;
  node.older = node.newer = kNone;
}

void BlockPool::LinkNewest(std::uint32_t block) {
  Node& node = nodes_[block];
  node.older = newest_;
  node.newer = kNone;
  (newest_ == kNone ? oldest_ : nodes_[newest_].newer) = block;
  newest_ = block;
}

void BlockPool::LinkOldest(std::uint32_t block) {
  Node& node = nodes_[block];
  node.newer = oldest_;
  node.older = kNone;
  (oldest_ == kNone ? newest_ : nodes_[oldest_].older) = block;
  oldest_ = block;
}

}  // namespace kvm::ctl
