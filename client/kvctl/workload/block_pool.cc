#include "client/kvctl/workload/block_pool.h"

#include <algorithm>

namespace kvm::ctl {

using policy::kNoKey;
using policy::Order;
using policy::Slot;

BlockPool::BlockPool(policy::PolicyKind kind, std::uint32_t blocks)
    : policy_(policy::MakePolicy(kind, blocks)), slots_(blocks), free_(blocks), leaves_(blocks) {
  slot_of_.reserve(blocks);
  for (std::uint32_t block = 0; block < blocks; ++block) free_[block] = blocks - 1 - block;
}

std::span<const BlockPool::Place> BlockPool::Serve(std::span<const BlockKey> keys) {
  path_.clear();
  places_.assign(keys.size(), {});
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto found = slot_of_.find(keys[i]);
    if (found != slot_of_.end()) places_[i].held = slots_[found->second].block;
    path_.push_back({keys[i].lo, i == 0 ? kNoKey : keys[i - 1].lo, static_cast<std::uint32_t>(i)});
  }
  policy_->OnRequest(path_);
  const bool first_to_last = policy_->order() == Order::kFirstToLast;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const std::size_t at = first_to_last ? i : keys.size() - 1 - i;
    Use(keys[at], path_[at], places_[at].held);
  }
  SettlePlaces(keys);
  return places_;
}

std::size_t BlockPool::Hits(std::span<const Place> places) noexcept {
  const auto miss = std::find_if(places.begin(), places.end(), [](const Place& place) { return place.held == kNoBlock; });
  return static_cast<std::size_t>(miss - places.begin());
}

void BlockPool::Use(const BlockKey& key, const policy::Block& block, std::uint32_t held) {
  if (const auto found = slot_of_.find(key); found != slot_of_.end()) return policy_->OnHit(found->second);
  const Slot slot = filled_ < slots_.size() ? filled_++ : Evict();
  slots_[slot] = {key, held};
  if (held != kNoBlock) leaves_[held] = false;  // it was marked to leave earlier in this request
  slot_of_.emplace(key, slot);
  policy_->OnInsert(slot, block);
}

Slot BlockPool::Evict() {
  const Slot victim = policy_->ChooseVictim();
  policy_->OnErase(victim);
  const Entry& entry = slots_[victim];
  slot_of_.erase(entry.key);
  ++evictions_;
  if (entry.block != kNoBlock) {
    left_.push_back(entry.block);
    leaves_[entry.block] = true;
  }
  return victim;
}

// Assigns blocks to the request's new keys. At least as many blocks are free now as there are new
// keys.
void BlockPool::SettlePlaces(std::span<const BlockKey> keys) {
  for (const std::uint32_t block : left_) {
    if (leaves_[block]) free_.push_back(block);
    leaves_[block] = false;
  }
  left_.clear();
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto found = slot_of_.find(keys[i]);
    if (found == slot_of_.end()) continue;
    Entry& entry = slots_[found->second];
    if (entry.block == kNoBlock) {
      entry.block = free_.back();
      free_.pop_back();
    }
    places_[i].kept = entry.block;
  }
}

}  // namespace kvm::ctl
