#include "client/kvctl/views/hot_tree.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

namespace kvm::ctl {
namespace {

struct Node {
  HotPrefixRow row;
  std::set<std::uint64_t> children;
};

}  // namespace

std::vector<HotPrefixRow> HottestPrefixes(const std::vector<HotEnd>& ends, const IndexLookup& index, std::size_t limit) {
  std::map<std::uint64_t, Node> nodes;
  for (const HotEnd& end : ends) {
    Node& last = nodes[end.key.lo];
    last.row.key = end.key;
    last.row.depth = end.depth;
    last.row.model = end.model;
    last.row.ends += end.uses;
    last.row.uses += end.uses;
    std::optional<IndexedBlock> block = index(end.key.lo);
    last.row.indexed = block.has_value();
    std::uint64_t child_lo = end.key.lo;
    // As many steps as there are blocks before it, so that a ring ends; and each nearer to the
    // root.
    for (std::uint32_t left = end.depth; left > 0 && block; --left) {
      std::optional<IndexedBlock> parent = index(block->parent_lo);
      if (!parent || parent->depth + 1 != block->depth) break;
      Node& node = nodes[parent->key.lo];
      node.row.key = parent->key;
      node.row.depth = parent->depth;
      node.row.model = end.model;
      node.row.indexed = true;
      node.row.uses += end.uses;
      node.children.insert(child_lo);
      child_lo = parent->key.lo;
      block = parent;
    }
  }
  std::vector<HotPrefixRow> rows;
  for (auto& [lo, node] : nodes) {
    node.row.branches = node.children.size();
    if (node.row.ends > 0 || node.row.branches > 1) rows.push_back(std::move(node.row));
  }
  const auto rank = [](const HotPrefixRow& row) { return std::tuple(~row.uses, ~row.depth, row.key); };
  std::sort(rows.begin(), rows.end(), [&](const HotPrefixRow& a, const HotPrefixRow& b) { return rank(a) < rank(b); });
  if (limit != 0 && rows.size() > limit) rows.resize(limit);
  return rows;
}

}  // namespace kvm::ctl
