#include "client/mesh/events/block_tree.h"

namespace kvm::mesh {

std::uint32_t BlockTree::Find(std::uint64_t hash) const noexcept {
  const auto found = at_.find(hash);
  return found == at_.end() ? kNone : found->second;
}

std::uint32_t BlockTree::Ensure(std::uint64_t hash) {
  if (free_ == kNone) {
    const auto [found, is_new] = at_.try_emplace(hash, end());
    if (!is_new) return found->second;
    try {
      nodes_.emplace_back();
    } catch (...) {
      at_.erase(found);
      throw;
    }
  } else {
    const auto [found, is_new] = at_.try_emplace(hash, free_);
    if (!is_new) return found->second;
    free_ = nodes_[free_].next;
  }
  const std::uint32_t at = at_.find(hash)->second;
  BlockNode& node = nodes_[at] = BlockNode();
  node.key.lo = hash;
  node.alive = true;
  return at;
}

void BlockTree::Place(std::uint32_t at, const BlockKey& key, std::uint64_t parent_hash, std::uint32_t depth) {
  // A block that claims to follow itself follows none.
  const std::uint32_t parent = depth == 0 || parent_hash == nodes_[at].key.lo ? kNone : Ensure(parent_hash);
  BlockNode& node = nodes_[at];
  node.key = key;
  node.depth = depth;
  node.placed = true;
  node.parent = parent;
  if (parent == kNone) return;
  node.before = kNone;
  node.next = nodes_[parent].first_child;
  if (node.next != kNone) nodes_[node.next].before = at;
  nodes_[parent].first_child = at;
}

void BlockTree::Displace(std::uint32_t at) noexcept {
  BlockNode& node = nodes_[at];
  node.placed = false;
  const std::uint32_t parent = node.parent;
  if (parent == kNone) return;
  (node.before == kNone ? nodes_[parent].first_child : nodes_[node.before].next) = node.next;
  if (node.next != kNone) nodes_[node.next].before = node.before;
  node.parent = node.next = node.before = kNone;
  RemoveIfBare(parent);
}

void BlockTree::RemoveIfBare(std::uint32_t at) noexcept {
  BlockNode& node = nodes_[at];
  if (!node.alive || node.placed || node.first_child != kNone) return;
  at_.erase(node.key.lo);
  node = BlockNode();
  node.next = free_;
  free_ = at;
}

}  // namespace kvm::mesh
