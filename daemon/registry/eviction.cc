#include "daemon/registry/eviction.h"

#include <algorithm>

#include "daemon/system/work_meter.h"

namespace kvm::daemon {
namespace {

constexpr int kMaxSlots = 512;        // looked at for one choice
constexpr int kPreferredSample = 16;  // entries seen before one of the best standing is good enough
constexpr int kAnySample = 64;        // … any victim

}  // namespace

std::uint64_t ClockEviction::ChooseVictim(const BlockIndexWriter& index, Standing best, const Judge& judge) {
  candidates_.clear();
  Standing chosen = Standing::kProtected;
  int seen = 0;
  for (int looked = 0; looked < kMaxSlots; ++looked) {
    Spend(1);
    const std::uint64_t slot = hand_;
    hand_ = hand_ + 1 >= index.slots() ? 0 : hand_ + 1;
    const IndexEntry entry = index.At(slot);
    if (entry.region_epoch == 0) continue;
    ++seen;
    const Standing standing = judge(entry);
    if (standing == Standing::kStale) return slot;
    if (standing < chosen) {
      chosen = standing;
      candidates_.clear();
    }
    if (standing == chosen && standing != Standing::kProtected) candidates_.push_back({slot, entry.published_s, entry.depth});
    if (chosen <= best && seen >= kPreferredSample) break;
    if (!candidates_.empty() && seen >= kAnySample) break;
  }
  if (candidates_.empty()) return kNoSlot;
  const auto earlier = [](const Candidate& a, const Candidate& b) { return a.published_s < b.published_s; };
  const auto [first, last] = std::minmax_element(candidates_.begin(), candidates_.end(), earlier);
  const std::uint32_t old_s = first->published_s + (last->published_s - first->published_s) / 2;
  return std::max_element(candidates_.begin(), candidates_.end(),
                          [&](const Candidate& a, const Candidate& b) {
                            const bool a_old = a.published_s <= old_s, b_old = b.published_s <= old_s;
                            if (a_old != b_old) return b_old;
                            return a.depth != b.depth ? a.depth < b.depth : a.published_s > b.published_s;
                          })
      ->slot;
}

}  // namespace kvm::daemon
