#include "client/kvctl/views/descendants.h"

#include <vector>

namespace kvm::ctl {

Ancestry::Ancestry(const IndexReader& index) {
  IndexEntry entry;
  for (std::uint64_t slot = 0; slot < index.slots(); ++slot) {
    if (index.ReadSlot(slot, entry)) nodes_.try_emplace(entry.key.lo, Node{entry.parent_lo, Verdict::kUnknown});
  }
}

bool Ancestry::Descends(std::uint64_t key_lo, std::uint64_t ancestor_lo) {
  if (ancestor_lo != asked_lo_) {
    for (auto& [lo, node] : nodes_) node.verdict = Verdict::kUnknown;
    asked_lo_ = ancestor_lo;
  }
  std::vector<Node*> path;
  Verdict verdict = Verdict::kNo;
  std::uint64_t at = key_lo;
  // Publishers name the parents, so a chain may be a ring: at most one step is taken per entry.
  for (std::size_t steps = 0; steps <= nodes_.size(); ++steps) {
    if (at == ancestor_lo) {
      verdict = Verdict::kYes;
      break;
    }
    const auto found = nodes_.find(at);
    if (found == nodes_.end()) break;
    if (found->second.verdict != Verdict::kUnknown) {
      verdict = found->second.verdict;
      break;
    }
    // Marked now, so that a ring ends at its second visit.
    found->second.verdict = Verdict::kNo;
    path.push_back(&found->second);
    at = found->second.parent_lo;
  }
  for (Node* node : path) node->verdict = verdict;
  return verdict == Verdict::kYes;
}

}  // namespace kvm::ctl
