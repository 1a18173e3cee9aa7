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

  // Which leading ones of `keys` the peer seems to have, if it has `known` of them. By binary
  // search, since what has a block mostly has the blocks before it; a depth counts if its own key
  // and the key before it are both contained, which squares the share of false answers.
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

}  // namespace kvm::mesh
