#include "daemon/registry/eviction.h"

namespace kvm::daemon {
namespace {

constexpr int kMaxSlots = 512;        // looked at for one choice
constexpr int kPreferredSample = 16;  // after so many entries, a preferred victim is taken
constexpr int kAnySample = 64;        // after so many entries, any victim is taken

bool Better(Standing standing, const IndexEntry& entry, Standing best_standing, const IndexEntry& best) {
  if (standing != best_standing) return standing < best_standing;
  if (entry.published_s != best.published_s) return entry.published_s < best.published_s;
  return entry.depth > best.depth;
}

}  // namespace

std::uint64_t ClockEviction::ChooseVictim(const BlockIndexWriter& index, const Judge& judge) {
  std::uint64_t victim = kNoSlot;
  Standing best_standing = Standing::kProtected;
  IndexEntry best;
  int seen = 0;
  for (int looked = 0; looked < kMaxSlots; ++looked) {
    const std::uint64_t slot = hand_;
    hand_ = hand_ + 1 >= index.slots() ? 0 : hand_ + 1;
    const IndexEntry entry = index.At(slot);
    if (entry.region_epoch == 0) continue;
    ++seen;
    const Standing standing = judge(entry);
    if (standing == Standing::kStale) return slot;
    if (standing != Standing::kProtected && (victim == kNoSlot || Better(standing, entry, best_standing, best))) {
      victim = slot;
      best_standing = standing;
      best = entry;
    }
    if (best_standing == Standing::kPreferred && seen >= kPreferredSample) break;
    if (victim != kNoSlot && seen >= kAnySample) break;
  }
  return victim;
}

}  // namespace kvm::daemon
