#include "daemon/policy/lru_guard.h"

#include <algorithm>

namespace kvm::policy {
namespace {

// How far behind LRU the cache may come, of the blocks asked for: half of 0.003, the goal, since
// what is expected of the blocks that are not here is an estimate. Less, and it turns to LRU before
// it has learnt anything.
constexpr double kTolerated = 0.0015;
constexpr double kFewBlocks = 20;  // of a request, while none was announced

}  // namespace

void LruGuard::OnRequest(std::uint64_t leading, std::uint64_t leading_lru, std::uint64_t blocks) {
  ++requests_;
  asked_ += blocks;
  hits_ += leading;
  lru_hits_ += leading_lru;
  // Old gains pay for one cache's content at most.
  lead_ = std::min(lead_ + static_cast<double>(leading) - static_cast<double>(leading_lru), static_cast<double>(capacity_));
  // While too little is known of what is absent, it is taken for what LRU holds on the whole.
  const double of_lru = (lru_used_ + 1) / (lru_used_ + lru_left_ + 2);
  const double missed = (missed_ + of_lru * BlocksOfRequest()) / (missed_ + spared_ + BlocksOfRequest());
  follows_lru_ = lead_ - missed * static_cast<double>(absent_) < -kTolerated * static_cast<double>(asked_);
}

double LruGuard::BlocksOfRequest() const noexcept {
  return requests_ == 0 ? kFewBlocks : static_cast<double>(asked_) / static_cast<double>(requests_);
}

}  // namespace kvm::policy
