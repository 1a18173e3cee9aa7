// CuckooFilter: a compact set of block keys that may contain keys that were never added.
//
// Buckets of four 16-bit fingerprints; a key's two buckets differ by a hash of its fingerprint, so
// that a fingerprint can be moved without its key. A bucket is one 64-bit word, which is also its
// image on the wire. A key that was never added seems to be contained with a probability of 1.2e-4
// in a full filter. Not thread-safe.
// Source: Fan, Andersen, Kaminsky, Mitzenmacher, "Cuckoo Filter: Practically Better Than Bloom",
// CoNEXT 2014.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvm/block_key.h"

namespace kvm::mesh {

class CuckooFilter {
 public:
  static constexpr std::size_t kSlotsPerBucket = 4;
  static constexpr std::uint64_t kMaxBuckets = std::uint64_t{1} << 25;  // 256 MiB

  // `buckets`: a power of two, at most kMaxBuckets.
  explicit CuckooFilter(std::uint64_t buckets = 1) : buckets_(buckets, 0) {}
  // Buckets for `keys` at a load of at most 84 %.
  static std::uint64_t BucketsFor(std::uint64_t keys) noexcept;

  bool Contains(const BlockKey& key) const noexcept;
  // False: there is no room, and some key that was added may have been lost: build a larger filter.
  // Buckets that changed are appended to `changed`.
  [[nodiscard]] bool Add(const BlockKey& key, std::vector<std::uint32_t>& changed);
  // Precondition: the key was added, and not removed since.
  void Remove(const BlockKey& key, std::vector<std::uint32_t>& changed) noexcept;

  std::span<const std::uint64_t> buckets() const noexcept { return buckets_; }
  // A bucket's image, as buckets() of another filter has it. Precondition: in range.
  void SetBucket(std::uint64_t bucket, std::uint64_t image) noexcept { buckets_[bucket] = image; }

 private:
  std::uint64_t Other(std::uint64_t bucket, std::uint16_t fingerprint) const noexcept;
  bool Has(std::uint64_t bucket, std::uint16_t fingerprint) const noexcept;
  bool Replace(std::uint64_t bucket, std::uint16_t from, std::uint16_t to) noexcept;

  std::vector<std::uint64_t> buckets_;
  std::uint64_t kicks_ = 0;  // chooses the slot that a full bucket loses
};

}  // namespace kvm::mesh
