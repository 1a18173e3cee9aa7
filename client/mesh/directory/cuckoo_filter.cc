#include "client/mesh/directory/cuckoo_filter.h"

#include <algorithm>
#include <bit>

namespace kvm::mesh {
namespace {

constexpr int kMaxKicks = 500;
constexpr unsigned kBits = 16;

// 0 marks an empty slot.
std::uint16_t FingerprintOf(const BlockKey& key) noexcept {
  const auto bits = static_cast<std::uint16_t>(key.hi >> 48);
  return bits == 0 ? 1 : bits;
}

std::uint16_t SlotOf(std::uint64_t image, std::size_t slot) noexcept { return static_cast<std::uint16_t>(image >> (slot * kBits)); }

}  // namespace

std::uint64_t CuckooFilter::BucketsFor(std::uint64_t keys) noexcept {
  const std::uint64_t slots = keys + keys / 5 + 64;
  return std::min(std::bit_ceil((slots + kSlotsPerBucket - 1) / kSlotsPerBucket), kMaxBuckets);
}

std::uint64_t CuckooFilter::Other(std::uint64_t bucket, std::uint16_t fingerprint) const noexcept {
  // Source: the multiplier of MurmurHash2, as in the paper's own implementation.
  return (bucket ^ (fingerprint * std::uint64_t{0x5bd1e995})) & (buckets_.size() - 1);
}

bool CuckooFilter::Has(std::uint64_t bucket, std::uint16_t fingerprint) const noexcept {
  const std::uint64_t image = buckets_[bucket];
  bool has = false;
  for (std::size_t slot = 0; slot < kSlotsPerBucket; ++slot) has |= SlotOf(image, slot) == fingerprint;
  return has;
}

bool CuckooFilter::Replace(std::uint64_t bucket, std::uint16_t from, std::uint16_t to) noexcept {
  for (std::size_t slot = 0; slot < kSlotsPerBucket; ++slot) {
    if (SlotOf(buckets_[bucket], slot) != from) continue;
    buckets_[bucket] ^= static_cast<std::uint64_t>(from ^ to) << (slot * kBits);
    return true;
  }
  return false;
}

bool CuckooFilter::Contains(const BlockKey& key) const noexcept {
  const std::uint16_t fingerprint = FingerprintOf(key);
  const std::uint64_t home = key.lo & (buckets_.size() - 1);
  return Has(home, fingerprint) || Has(Other(home, fingerprint), fingerprint);
}

bool CuckooFilter::Add(const BlockKey& key, std::vector<std::uint32_t>& changed) {
  std::uint16_t fingerprint = FingerprintOf(key);
  std::uint64_t bucket = key.lo & (buckets_.size() - 1);
  if (Replace(bucket, 0, fingerprint)) {
    changed.push_back(static_cast<std::uint32_t>(bucket));
    return true;
  }
  bucket = Other(bucket, fingerprint);
  for (int kick = 0; kick < kMaxKicks; ++kick) {
    changed.push_back(static_cast<std::uint32_t>(bucket));
    if (Replace(bucket, 0, fingerprint)) return true;
    const std::uint16_t evicted = SlotOf(buckets_[bucket], kicks_++ % kSlotsPerBucket);
    static_cast<void>(Replace(bucket, evicted, fingerprint));
    fingerprint = evicted;
    bucket = Other(bucket, fingerprint);
  }
  return false;
}

void CuckooFilter::Remove(const BlockKey& key, std::vector<std::uint32_t>& changed) noexcept {
  const std::uint16_t fingerprint = FingerprintOf(key);
  std::uint64_t bucket = key.lo & (buckets_.size() - 1);
  if (!Replace(bucket, fingerprint, 0)) {
    bucket = Other(bucket, fingerprint);
    static_cast<void>(Replace(bucket, fingerprint, 0));
  }
  changed.push_back(static_cast<std::uint32_t>(bucket));
}

}  // namespace kvm::mesh
