#include "client/kvctl/simulate/simulated_cache.h"

#include <limits>
#include <queue>
#include <utility>
#include <vector>

namespace kvm::ctl {
namespace {

using policy::Block;
using policy::kNoSlot;
using policy::Order;
using policy::Slot;

class Cache {
 public:
  Cache(const BlockTrace& trace, policy::EvictionPolicy& policy, std::uint32_t capacity)
      : trace_(trace), policy_(policy), slot_of_(trace.distinct(), kNoSlot), block_in_(capacity) {}

  std::uint64_t Serve(std::span<const std::uint32_t> blocks) {
    path_.clear();
    std::uint64_t hits = 0;
    for (const std::uint32_t block : blocks) {
      if (hits == path_.size() && slot_of_[block] != kNoSlot) ++hits;
      path_.push_back({trace_.key(block), path_.empty() ? policy::kNoKey : path_.back().key, static_cast<std::uint32_t>(path_.size())});
    }
    policy_.OnRequest(path_);
    const bool first_to_last = policy_.order() == Order::kFirstToLast;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const std::size_t at = first_to_last ? i : blocks.size() - 1 - i;
      Use(blocks[at], path_[at]);
    }
    return hits;
  }

 private:
  void Use(std::uint32_t number, const Block& block) {
    if (slot_of_[number] != kNoSlot) return policy_.OnHit(slot_of_[number]);
    const Slot slot = filled_ < block_in_.size() ? filled_++ : Evict();
    slot_of_[number] = slot;
    block_in_[slot] = number;
    policy_.OnInsert(slot, block);
  }

  Slot Evict() {
    const Slot victim = policy_.ChooseVictim();
    policy_.OnErase(victim);
    slot_of_[block_in_[victim]] = kNoSlot;
    return victim;
  }

  const BlockTrace& trace_;
  policy::EvictionPolicy& policy_;
  std::vector<Slot> slot_of_;
  std::vector<std::uint32_t> block_in_;
  std::vector<Block> path_;
  Slot filled_ = 0;
};

}  // namespace

std::uint64_t SimulateCache(const BlockTrace& trace, policy::EvictionPolicy& policy, std::uint32_t capacity) {
  Cache cache(trace, policy, capacity);
  std::uint64_t hits = 0;
  for (std::size_t request = 0; request < trace.requests(); ++request) hits += cache.Serve(trace[request]);
  return hits;
}

std::uint64_t SimulateMin(const BlockTrace& trace, std::uint32_t capacity) {
  constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();
  // Next use of each use, both by their place in the trace.
  std::vector<std::uint64_t> next_use(trace.blocks()), coming(trace.distinct(), kNever);
  std::size_t begin = trace.blocks();
  for (std::size_t request = trace.requests(); request-- > 0;) {
    const auto blocks = trace[request];
    begin -= blocks.size();
    for (std::size_t at = blocks.size(); at-- > 0;) next_use[begin + at] = std::exchange(coming[blocks[at]], begin + at);
  }
  std::vector<std::uint64_t> due(trace.distinct());  // next use of a resident block
  std::vector<bool> resident(trace.distinct());
  // Outdated elements are skipped. Of blocks that are never used again, the one with the greater
  // number is first: the tail.
  std::priority_queue<std::pair<std::uint64_t, std::uint32_t>> farthest;
  std::uint64_t hits = 0;
  std::uint32_t filled = 0;
  for (std::size_t request = 0; request < trace.requests(); ++request) {
    const auto blocks = trace[request];
    std::size_t leading = 0;
    while (leading < blocks.size() && resident[blocks[leading]]) ++leading;
    hits += leading;
    for (std::size_t at = 0; at < blocks.size(); ++at) {
      const std::uint32_t block = blocks[at];
      if (!resident[block]) ++filled;
      resident[block] = true;
      due[block] = next_use[begin + at];
      farthest.emplace(due[block], block);
      while (filled > capacity) {
        const auto [use, victim] = farthest.top();
        farthest.pop();
        if (!resident[victim] || due[victim] != use) continue;
        resident[victim] = false;
        --filled;
      }
    }
    begin += blocks.size();
  }
  return hits;
}

}  // namespace kvm::ctl
