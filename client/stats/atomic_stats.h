// What a client counts. Every part of libkvclient adds to it; ClientStats is what callers see,
// StatsReport what kvmd does.
#pragma once

#include <atomic>
#include <cstdint>

#include "client/stats/durations.h"
#include "client/stats/traffic.h"
#include "kvclient/stats.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

struct AtomicStats {
// NOLINTNEXTLINE(bugprone-macro-parentheses): the name of a member
#define KVM_ATOMIC_COUNTER(name, meaning) std::atomic<std::uint64_t> name{0};
#define KVM_NOT_COUNTED(name, meaning)
  KVCLIENT_STATS(KVM_ATOMIC_COUNTER, KVM_ATOMIC_COUNTER, KVM_NOT_COUNTED)
#undef KVM_ATOMIC_COUNTER
#undef KVM_NOT_COUNTED
  // For kvmd only: how long lookups took (one of kLookupsPerTime), and imports from their start
  // until their caller saw the end.
  AtomicDurations lookup_times, import_times;
  Traffic traffic;
};

// So many lookups are counted for one that is timed: two looks at a clock would be felt in a lookup
// of few keys.
inline constexpr std::uint64_t kLookupsPerTime = 8;

// The counters; what is not counted is 0.
ClientStats Load(const AtomicStats& stats) noexcept;

// Those that kvmd is told.
kvmwire::StatsReport ReportOf(const ClientStats& stats);
// Times, and the traffic between devices.
void ReportTimes(const AtomicStats& stats, kvmwire::StatsReport& report);

}  // namespace kvm
