// PeerSummary: what a peer says it has, and how far a prefix reaches into it.
//
// A hint in both directions: the peer may have lost a block since, and the filter may contain keys
// that the peer never had. The peer answers exactly when it is asked for the blocks. Everything in
// an image comes from another machine and is checked. Not thread-safe.
#pragma once

#include <cstdint>
#include <span>

#include "client/mesh/directory/cuckoo_filter.h"
#include "client/mesh/directory/node_summary.h"
#include "kvm/error.h"

namespace kvm::mesh {

class PeerSummary {
 public:
  // kProtocol: a length, bucket or number in it is out of range; nothing has changed then.
  // kStale: a delta that does not continue what is known; Forget and ask again.
  [[nodiscard]] Status Apply(const SummaryImage& image);
  void Forget() noexcept { *this = PeerSummary(); }

  // Nothing before the first image.
  bool Contains(const BlockKey& key) const noexcept { return epoch_ != 0 && filter_.Contains(key); }
  // As the function below, of this summary alone.
  std::size_t MatchedDepth(std::span<const BlockKey> keys, std::size_t known) const noexcept;

  std::uint64_t epoch() const noexcept { return epoch_; }
  std::uint64_t sequence() const noexcept { return sequence_; }
  std::uint64_t keys() const noexcept { return keys_; }

 private:
  CuckooFilter filter_;
  std::uint64_t epoch_ = 0;
  std::uint64_t sequence_ = 0;
  std::uint64_t keys_ = 0;
};

// Which leading ones of `keys` there seem to be where `contains` says so of one key, if there are
// `known` of them. By binary search, since what has a block mostly has the blocks before it; a
// depth counts if its own key and the key before it are both contained, which squares the share of
// false answers. What lacks the first key that is asked for brings nothing, and costs one look.
template <class Contains>
std::size_t MatchedDepth(std::span<const BlockKey> keys, std::size_t known, const Contains& contains) noexcept {
  if (known >= keys.size() || !contains(keys[known])) return known;
  std::size_t low = known, high = keys.size();  // low: reached; above high: not
  while (low < high) {
    const std::size_t depth = low + (high - low + 1) / 2;
    const bool reached = contains(keys[depth - 1]) && (depth - 1 == known || contains(keys[depth - 2]));
    if (reached) {
      low = depth;
    } else {
      high = depth - 1;
    }
  }
  return low;
}

// How far a prefix reaches into a node.
struct MatchedDepths {
  std::size_t all = 0;     // blocks that it has in memory or on its disk
  std::size_t memory = 0;  // that it has in memory, without a gap
};

MatchedDepths MatchBoth(const PeerSummary& memory, const PeerSummary& disk, std::span<const BlockKey> keys, std::size_t known) noexcept;

}  // namespace kvm::mesh
