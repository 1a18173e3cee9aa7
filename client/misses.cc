#include "client/misses.h"

#include <chrono>
#include <new>

#include "client/near_misses.h"

namespace kvm {
namespace {

constexpr std::int64_t kLookAgainMs = 1000;

}  // namespace

void Misses::Note(MatchEnd end, std::size_t found) noexcept {
  const auto count = [](std::atomic<std::uint64_t>& counter) { counter.fetch_add(1, std::memory_order_relaxed); };
  switch (end) {
    case MatchEnd::kComplete: return count(stats_.misses_too_short);
    case MatchEnd::kStale: return count(stats_.misses_stale);
    case MatchEnd::kUnmapped: return count(stats_.misses_unreachable);
    case MatchEnd::kUnavailable: return count(stats_.misses_kvmd_away);
    case MatchEnd::kAbsent: break;
  }
  // What has been published since kvmd went can't be found.
  if (!link_.connected()) return count(stats_.misses_kvmd_away);
  count(found == 0 && OtherModelServes() ? stats_.misses_other_model : stats_.misses_absent);
}

bool Misses::OtherModelServes() noexcept {
  const std::int64_t now_ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  std::int64_t looked_ms = looked_ms_.load(std::memory_order_acquire);
  const bool due = looked_ms == 0 || now_ms - looked_ms >= kLookAgainMs;
  // One of several threads looks; the others take the last answer.
  if (!due || !looked_ms_.compare_exchange_strong(looked_ms, now_ms, std::memory_order_acq_rel))
    return other_serves_.load(std::memory_order_relaxed);
  bool serves = false;
  try {
    const PeerTable::Snapshots snapshots = peers_.Get();
    serves = snapshots.current && NearMissServes(snapshots.current->registry, models_.Models());
  } catch (const std::bad_alloc&) {
    serves = false;
  }
  other_serves_.store(serves, std::memory_order_relaxed);
  return serves;
}

}  // namespace kvm
