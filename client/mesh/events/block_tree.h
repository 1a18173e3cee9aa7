// BlockTree: blocks by hash, each with the blocks that follow it.
//
// A parent that is named and not known has a node of its own without a place in the tree, so that
// its children are found once it comes. Nodes are numbered; a number is good until Remove. Not
// thread-safe.
#pragma once

#include <array>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "client/mesh/events/held_blocks.h"
#include "proto/base/secret_hash.h"

namespace kvm::mesh {

// Numbers of nodes; kNoNode: of none.
inline constexpr std::uint32_t kNoNode = ~std::uint32_t{0};

struct BlockNode {
  BlockKey key;  // of a node without a place: only the low half
  std::uint32_t depth = 0;
  std::uint32_t parent = kNoNode, first_child = kNoNode;
  std::uint32_t next = kNoNode, before = kNoNode;  // other children of the parent
  std::uint32_t slot = ~std::uint32_t{0};          // in the token table, as last seen
  std::uint32_t position = ~std::uint32_t{0};      // among those that are being told
  std::array<std::uint32_t, 2> replicas{};         // that the node holds: on a GPU, elsewhere
  Media media = 0;                                 // of which readers know
  Media found = 0;                                 // of which they may know
  std::uint8_t standing = 0;                       // PublishedBlocks::Standing
  bool alive = false, placed = false;              // in use; key, depth and parent are known
  bool queued = false;                             // found is to be computed anew
  bool moves = false;                              // is to get another place

  bool held() const noexcept { return replicas[0] + replicas[1] > 0; }
};

class BlockTree {
 public:
  static constexpr std::uint32_t kNone = kNoNode;

  // kNone: there is none.
  std::uint32_t Find(std::uint64_t hash) const noexcept;
  // The node of this hash, which is made if there is none. Numbers stay, addresses of nodes do not.
  std::uint32_t Ensure(std::uint64_t hash);
  // The node's place is this one now. Precondition: it has none.
  void Place(std::uint32_t at, const BlockKey& key, std::uint64_t parent_hash, std::uint32_t depth);
  // It has none any more; a parent that was there for it alone is removed.
  void Displace(std::uint32_t at) noexcept;
  // Removes the node if it has neither a place nor children.
  void RemoveIfBare(std::uint32_t at) noexcept;

  BlockNode& operator[](std::uint32_t at) noexcept { return nodes_[at]; }
  const BlockNode& operator[](std::uint32_t at) const noexcept { return nodes_[at]; }
  std::size_t size() const noexcept { return at_.size(); }
  // Numbers are below this; some of them may be of no node.
  std::uint32_t end() const noexcept { return static_cast<std::uint32_t>(nodes_.size()); }

 private:
  std::vector<BlockNode> nodes_;
  boost::unordered_flat_map<std::uint64_t, std::uint32_t, SecretHash> at_;
  std::uint32_t free_ = kNone;  // a list, by `next`
};

}  // namespace kvm::mesh
