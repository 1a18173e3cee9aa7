// NodeSummary: what this node tells its peers about the keys that it has.
//
// The exact set of keys and a CuckooFilter of it. Each Update with changes gets a sequence number,
// and the buckets that it changed are remembered for a while, so that a peer that knows an earlier
// sequence gets only those. The epoch changes when the filter is built anew; a peer with another
// epoch, or one that is too far behind, gets the whole filter. After a lack of memory the next
// Update or Change builds the filter anew. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "client/mesh/directory/cuckoo_filter.h"
#include "client/mesh/directory/key_change.h"
#include "kvm/block_key.h"
#include "proto/base/secret_hash.h"

namespace kvm::mesh {

// What a peer is sent: kvmmesh.Summary and the payload of its frame.
struct SummaryImage {
  std::uint64_t epoch = 0;
  std::uint64_t sequence = 0;
  bool snapshot = false;
  std::uint64_t buckets = 0;
  std::uint64_t keys = 0;
  std::string payload;
};

// Whose keys anybody in the domain chooses.
using KeySet = std::unordered_set<BlockKey, SecretHash>;

class NodeSummary {
 public:
  NodeSummary();

  // The node has exactly these keys now.
  void Update(KeySet keys);
  // In order; a change that says what is known already is none.
  void Change(std::span<const KeyChange> changes);
  // The node has none of them; the epoch is another one.
  void Clear();
  bool Contains(const BlockKey& key) const { return keys_.contains(key); }
  // For a peer that knows `sequence` of `epoch`; 0: it knows nothing.
  SummaryImage Answer(std::uint64_t epoch, std::uint64_t sequence) const;
  // The same. All that are sent the same at a time share one, which may be megabytes.
  std::shared_ptr<const SummaryImage> Share(std::uint64_t epoch, std::uint64_t sequence) const;
  std::size_t keys() const noexcept { return keys_.size(); }

 private:
  // Whether a peer that knows this gets what has changed since.
  bool Continues(std::uint64_t epoch, std::uint64_t sequence) const noexcept {
    return epoch == epoch_ && sequence <= sequence_ && sequence_ - sequence <= changes_.size();
  }
  void Rebuild();
  // The filter has what keys_ has; these buckets of it are others. Not `room`: it lacks some.
  void End(std::vector<std::uint32_t> changed, bool room);
  // Adds all keys to an empty filter_. False: there was no room for one; further ones are added
  // only if `as_far_as_possible`.
  bool Fill(bool as_far_as_possible);

  static constexpr std::size_t kRemembered = 64;  // updates

  KeySet keys_;
  CuckooFilter filter_;
  // By the sequence that the peer knows; the greatest number: it gets the whole filter. Those of
  // shared_at_, an epoch and a sequence
  mutable std::map<std::uint64_t, std::weak_ptr<const SummaryImage>> shared_;
  mutable std::pair<std::uint64_t, std::uint64_t> shared_at_;
  bool fits_ = true;  // filter_ has what keys_ has; not after a lack of memory
  std::uint64_t epoch_ = 0;
  std::uint64_t sequence_ = 0;
  // changes_[i]: the buckets of update sequence_ - changes_.size() + 1 + i
  std::deque<std::vector<std::uint32_t>> changes_;
};

}  // namespace kvm::mesh
