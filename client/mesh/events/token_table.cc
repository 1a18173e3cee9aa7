#include "client/mesh/events/token_table.h"

#include <algorithm>

namespace kvm::mesh {
namespace {

constexpr std::size_t kMaxAdapters = 4096;
// Blocks that are held and passed over in search of one that is not.
constexpr int kMaxPassedOver = 64;

}  // namespace

TokenTable::TokenTable(std::uint32_t block_tokens, std::size_t most)
    : block_tokens_(block_tokens), most_(std::clamp<std::size_t>(most, 1, kNone - 1)) {}

std::uint32_t TokenTable::Find(const BlockKey& key) const noexcept {
  const auto found = at_.find(key);
  return found == at_.end() ? kNone : found->second;
}

std::uint32_t TokenTable::AdapterNumber(std::string_view adapter) {
  const auto found = std::find(adapters_.begin(), adapters_.end(), adapter);
  if (found != adapters_.end()) return static_cast<std::uint32_t>(found - adapters_.begin());
  if (adapters_.size() > kMaxAdapters) return kNone;
  adapters_.emplace_back(adapter);
  return static_cast<std::uint32_t>(adapters_.size() - 1);
}

void TokenTable::Link(std::uint32_t at) noexcept {
  slots_[at].older = newest_;
  slots_[at].newer = kNone;
  (newest_ == kNone ? oldest_ : slots_[newest_].newer) = at;
  newest_ = at;
}

void TokenTable::Unlink(std::uint32_t at) noexcept {
  const Slot& slot = slots_[at];
  (slot.newer == kNone ? newest_ : slots_[slot.newer].older) = slot.older;
  (slot.older == kNone ? oldest_ : slots_[slot.older].newer) = slot.newer;
}

// A place that no block has and that is not linked.
std::uint32_t TokenTable::Take(std::optional<BlockKey>& forgotten) {
  if (slots_.size() < most_) {
    tokens_.resize((slots_.size() + 1) * block_tokens_);
    slots_.emplace_back();
    return static_cast<std::uint32_t>(slots_.size() - 1);
  }
  for (int passed = 0; passed < kMaxPassedOver && slots_[oldest_].held; ++passed) {
    const std::uint32_t held = oldest_;
    Unlink(held);
    Link(held);
  }
  const std::uint32_t out = oldest_;
  Unlink(out);
  forgotten = slots_[out].key;
  at_.erase(slots_[out].key);
  ++forgotten_;
  return out;
}

TokenTable::PutOutcome TokenTable::Put(const BlockKey& key, std::span<const std::uint32_t> tokens, std::string_view adapter) {
  if (const std::uint32_t known = Find(key); known != kNone) {
    Unlink(known);
    Link(known);
    return {true, false, std::nullopt};
  }
  const std::uint32_t number = AdapterNumber(adapter);
  if (number == kNone) return {};
  at_.reserve(std::min(at_.size() + 1, most_));
  PutOutcome out{true, true, std::nullopt};
  const std::uint32_t at = Take(out.forgotten);
  slots_[at].key = key;
  slots_[at].held = false;
  slots_[at].adapter = number;
  std::copy_n(tokens.begin(), block_tokens_, tokens_.begin() + static_cast<std::ptrdiff_t>(std::size_t{at} * block_tokens_));
  at_.emplace(key, at);
  Link(at);
  return out;
}

}  // namespace kvm::mesh
