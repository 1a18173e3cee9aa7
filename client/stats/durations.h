// AtomicDurations: how long calls took, in buckets of powers of two of a microsecond.
//
// Any thread adds and reports, without waiting. A report made meanwhile may have a call in its sum
// and not in its bucket.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "proto/wire/protocol_limits.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

class AtomicDurations {
 public:
  // The bucket of a call: i for at most 2^i microseconds.
  static std::size_t BucketOf(std::chrono::nanoseconds took) noexcept {
    const auto ns = static_cast<std::uint64_t>(took.count() < 0 ? 0 : took.count());
    const std::uint64_t us = (ns + 999) / 1000;
    const std::size_t bucket = us <= 1 ? 0 : static_cast<std::size_t>(std::bit_width(us - 1));
    return bucket < kDurationBuckets ? bucket : kDurationBuckets - 1;
  }

  void Add(std::chrono::nanoseconds took) noexcept {
    counts_[BucketOf(took)].fetch_add(1, std::memory_order_relaxed);
    sum_ns_.fetch_add(static_cast<std::uint64_t>(took.count() < 0 ? 0 : took.count()), std::memory_order_relaxed);
  }

  void Report(kvmwire::Durations& out) const {
    for (const auto& count : counts_) out.add_counts(count.load(std::memory_order_relaxed));
    out.set_sum_ns(sum_ns_.load(std::memory_order_relaxed));
  }

 private:
  std::array<std::atomic<std::uint64_t>, kDurationBuckets> counts_{};
  std::atomic<std::uint64_t> sum_ns_{0};
};

}  // namespace kvm
