#include "client/misses.h"

#include <chrono>
#include <limits>
#include <new>

#include "client/near_misses.h"

namespace kvm {
namespace {

constexpr std::int64_t kLookAgainMs = 1000;

}  // namespace

void Misses::Note(MatchEnd end, std::size_t found, std::span<const BlockKey> keys) noexcept { Remember(Count(end, found), found, keys); }

kvmwire::MissReason Misses::Count(MatchEnd end, std::size_t found) noexcept {
  const auto count = [](std::atomic<std::uint64_t>& counter, kvmwire::MissReason reason) {
    counter.fetch_add(1, std::memory_order_relaxed);
    return reason;
  };
  switch (end) {
    case MatchEnd::kComplete: return count(stats_.misses_too_short, kvmwire::MISS_TOO_SHORT);
    case MatchEnd::kStale: return count(stats_.misses_stale, kvmwire::MISS_STALE);
    case MatchEnd::kUnmapped: return count(stats_.misses_unreachable, kvmwire::MISS_UNREACHABLE);
    case MatchEnd::kUnavailable: return count(stats_.misses_kvmd_away, kvmwire::MISS_KVMD_AWAY);
    case MatchEnd::kAbsent: break;
  }
  // What has been published since kvmd went can't be found.
  if (!link_.connected()) return count(stats_.misses_kvmd_away, kvmwire::MISS_KVMD_AWAY);
  if (found == 0 && OtherModelServes()) return count(stats_.misses_other_model, kvmwire::MISS_OTHER_MODEL);
  return count(stats_.misses_absent, kvmwire::MISS_ABSENT);
}

void Misses::Remember(kvmwire::MissReason reason, std::size_t found, std::span<const BlockKey> keys) noexcept {
  const BlockKey key = found < keys.size() ? keys[found] : BlockKey{};
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const MutexLock lock(mutex_);
  Miss& newest = last_[(noted_ + last_.size() - 1) % last_.size()];
  const bool again = newest.times > 0 && newest.key == key && newest.reason == reason;
  Miss& miss = again ? newest : last_[noted_++ % last_.size()];
  const std::uint32_t times = again ? newest.times : 0;
  miss = {.reason = reason,
          .at_ms = static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()),
          .times = times + (times < std::numeric_limits<std::uint32_t>::max()),
          .keys = static_cast<std::uint32_t>(keys.size()),
          .found = static_cast<std::uint32_t>(found),
          .key = key};
}

void Misses::Report(kvmwire::StatsReport& report) const {
  const MutexLock lock(mutex_);
  for (std::size_t i = 0; i < last_.size(); ++i) {
    const Miss& miss = last_[(noted_ + i) % last_.size()];
    if (miss.times == 0) continue;
    kvmwire::RecentMiss& out = *report.add_recent_misses();
    out.set_reason(miss.reason);
    out.set_at_ms(miss.at_ms);
    out.set_times(miss.times);
    out.set_keys(miss.keys);
    out.set_found(miss.found);
    if (miss.keys > 0) out.set_key(&miss.key, sizeof(miss.key));
  }
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
