// Looks keys up one behind another, for FindIn and CountIn, which differ in what they do with each.
//
// A lookup is bound by memory latency: each key costs a few random cache lines of the index and one
// of a generation table. So it runs as a pipeline over batches of keys: two batches ahead, prefetch
// the tags at the keys' homes; one batch ahead, read those tags and prefetch the slots that they
// name; read the slots and prefetch the generations of their blocks; and a batch later, check those
// generations. In an index that is nearly empty, the slot at a key's home is prefetched at once,
// which saves the tags' line.
//
// Tags and slots of the keys ahead have a loop of their own. In a large index a prefetch waits for
// address translation, and the processor goes on for a few hundred instructions only: with little
// else among them, it translates many addresses at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "client/find/find.h"

namespace kvm {

// A key that has been looked up and whose generation has not been checked yet. Almost every key has
// one replica.
struct Candidate {
  std::size_t count = 0;                 // 0: absent
  const PeerMapping* mapping = nullptr;  // of a single replica; null: not mapped
  std::array<IndexHit, layout::kMaxReplicas> replicas;
};

// Which sources of a snapshot an importer can use. Both must outlive it.
class UsableSources {
 public:
  UsableSources(const PeerSnapshot& snapshot, const FindTarget& target) noexcept : snapshot_(snapshot), target_(target) {}

  const PeerMapping* MappingOf(const IndexHit& entry) const noexcept {
    if (entry.region >= snapshot_.by_row.size()) return nullptr;
    const PeerRegion& region = snapshot_.by_row[entry.region];
    return region.region_epoch == entry.region_epoch ? region.mapping.get() : nullptr;
  }

  // kComplete: the source can be used. `mapping`: the entry's, as MappingOf gives it.
  MatchEnd Validate(const IndexHit& entry, const PeerMapping* mapping) const noexcept {
    if (mapping == nullptr) return MatchEnd::kUnmapped;
    if (mapping->own && !target_.include_own) return MatchEnd::kAbsent;
    if (target_.must_reach && !mapping->PathTo(target_.device)) return MatchEnd::kUnmapped;
    if (mapping->generations.reader.Current(entry.block) != entry.generation) return MatchEnd::kStale;
    return MatchEnd::kComplete;
  }

  // Calls `usable(entry, mapping)` for each replica that can be used, beginning with replica
  // `turn`. kComplete: there is one; else the most specific reason: kUnmapped before kStale before
  // kAbsent.
  template <class Usable>
  MatchEnd EachUsable(const Candidate& candidate, std::size_t turn, const Usable& usable) const {
    const std::size_t count = candidate.count;
    MatchEnd failure = MatchEnd::kAbsent;
    bool any = false;
    for (std::size_t i = 0; i < count; ++i) {
      const IndexHit& entry = candidate.replicas[i + turn < count ? i + turn : i + turn - count];
      const PeerMapping* mapping = MappingOf(entry);
      const MatchEnd judged = Validate(entry, mapping);
      if (judged == MatchEnd::kComplete) {
        any = true;
        usable(entry, *mapping);
      } else if (failure == MatchEnd::kAbsent || judged == MatchEnd::kUnmapped) {
        failure = judged;
      }
    }
    return any ? MatchEnd::kComplete : failure;
  }

 private:
  const PeerSnapshot& snapshot_;
  const FindTarget& target_;
};

// How a lookup gets from a key to a slot: by the tags, or straight to the key's home. `Find` is for
// keys that are not alone in the slot that Probe named.
struct ByTags {
  const IndexReader& index;
  [[gnu::always_inline]] void Prefetch(const BlockKey& key) const noexcept { index.Prefetch(key); }
  [[gnu::always_inline]] std::uint64_t Probe(const BlockKey& key) const noexcept { return index.Probe(key); }
  std::size_t Find(const BlockKey& key, std::span<IndexHit> out, std::uint64_t slot) const noexcept { return index.Find(key, out, slot); }
};
struct ByHome {
  const IndexReader& index;
  [[gnu::always_inline]] void Prefetch(const BlockKey& key) const noexcept { index.PrefetchHome(key); }
  [[gnu::always_inline]] std::uint64_t Probe(const BlockKey& key) const noexcept { return index.Home(key); }
  // Slot by slot from home: the next slots are nearer than the tags.
  std::size_t Find(const BlockKey& key, std::span<IndexHit> out, std::uint64_t) const noexcept { return index.Find(key, out); }
};

// Of LookUpKeys.
template <class Way, class Take>
MatchEnd LookUpBy(const Way& way, const UsableSources& sources, std::span<const BlockKey> keys, const Take& take) {
  constexpr std::size_t kBatch = 16;
  const auto look_up = [&](const BlockKey& key, std::uint64_t hint, Candidate& out) {
    out.count = way.index.FindOnly(key, hint, out.replicas[0]) ? 1 : way.Find(key, out.replicas, hint);
    for (std::size_t i = 0; i < out.count; ++i) {
      out.mapping = sources.MappingOf(out.replicas[i]);
      if (out.mapping != nullptr) out.mapping->generations.reader.Prefetch(out.replicas[i].block);
    }
  };
  std::array<Candidate, kBatch> looked_up;      // of the batch before, up to the key at hand
  std::array<std::uint64_t, 2 * kBatch> hints;  // of this batch and the next one
  std::size_t end = keys.size();                // keys from here on can't be part of the match
  for (std::size_t i = 0; i < std::min(2 * kBatch, end); ++i) way.Prefetch(keys[i]);
  for (std::size_t i = 0; i < std::min(kBatch, end); ++i) hints[i] = way.Probe(keys[i]);
  for (std::size_t begin = 0; begin < end + kBatch; begin += kBatch) {
    for (std::size_t i = begin + kBatch; i < std::min(begin + 2 * kBatch, end); ++i) {
      if (i + kBatch < end) way.Prefetch(keys[i + kBatch]);
      hints[i % (2 * kBatch)] = way.Probe(keys[i]);
    }
    for (std::size_t i = begin; i < std::min(begin, end) + kBatch; ++i) {
      Candidate& candidate = looked_up[i % kBatch];
      if (i >= kBatch) {
        if (const MatchEnd taken = take(candidate); taken != MatchEnd::kComplete) return taken;
      }
      if (i >= end) continue;
      look_up(keys[i], hints[i % (2 * kBatch)], candidate);
      if (candidate.count == 0) end = i + 1;
    }
  }
  return MatchEnd::kComplete;
}

// Looks up `keys` in order until `take(candidate)`, called for each, returns something other than
// kComplete, which is returned. kComplete: all keys have been taken. Takes no key behind the first
// absent one.
template <class Take>
MatchEnd LookUpKeys(const RegistryView& registry, const UsableSources& sources, std::span<const BlockKey> keys, const Take& take) {
  return registry.nearly_empty() ? LookUpBy(ByHome{registry.index()}, sources, keys, take)
                                 : LookUpBy(ByTags{registry.index()}, sources, keys, take);
}

}  // namespace kvm
