// SeenKeys: which keys have been offered lately. It is a bounded filter, which forgets old keys and
// takes one key for another about once in 2^29.
//
// Buckets of eight 32-bit tags, newest first; a bucket that is full forgets its oldest. One cache
// line for two buckets.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "kvm/block_key.h"

namespace kvm::daemon {

class SeenKeys {
 public:
  static constexpr std::uint64_t kMostKeys = std::uint64_t{1} << 22;  // 16 MiB

  // Room for about `keys`, at most kMostKeys.
  explicit SeenKeys(std::uint64_t keys) : buckets_(std::bit_ceil(std::clamp<std::uint64_t>(keys, kTags, kMostKeys)) / kTags) {}

  // Adds `key`, and returns whether it was present before.
  bool Add(const BlockKey& key) noexcept {
    Bucket& bucket = buckets_[key.lo & (buckets_.size() - 1)];
    const auto tag = static_cast<std::uint32_t>(key.hi) | 1;  // 0: empty
    const auto found = std::find(bucket.begin(), bucket.end(), tag);
    const bool seen = found != bucket.end();
    std::move_backward(bucket.begin(), seen ? found : bucket.end() - 1, seen ? found + 1 : bucket.end());
    bucket[0] = tag;
    return seen;
  }
  std::size_t bytes() const noexcept { return buckets_.size() * sizeof(Bucket); }

 private:
  static constexpr std::uint64_t kTags = 8;
  using Bucket = std::array<std::uint32_t, kTags>;
  std::vector<Bucket> buckets_;
};

}  // namespace kvm::daemon
