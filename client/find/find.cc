// The lookup is bound by memory latency: each key costs a few random cache lines of the index and
// one of a generation table. So it runs as a pipeline over the keys: kPrefetchAhead keys ahead,
// prefetch the tags at a key's home; kProbeAhead keys ahead, read those tags and prefetch the slot
// that they name; read the slot and prefetch its block's generation; and kJudgeBehind keys later,
// check that generation.
#include "client/find/find.h"

#include <algorithm>
#include <array>

namespace kvm {
namespace {

constexpr std::size_t kPrefetchAhead = 24;
constexpr std::size_t kProbeAhead = 12;
constexpr std::size_t kJudgeBehind = 8;
// So many blocks are taken from one of several equally near sources, then the next source is used
constexpr std::size_t kMaxRunFromOneSource = 128;

// A key that has been looked up and whose generation has not been checked yet. Almost every key has
// one replica.
struct Candidate {
  std::array<IndexHit, layout::kMaxReplicas> replicas;
  std::size_t count = 0;                 // 0: absent
  const PeerMapping* mapping = nullptr;  // of a single replica; null: not mapped
};

class Matcher {
 public:
  Matcher(const PeerSnapshot& snapshot, const FindTarget& target, Match::Impl& out) : snapshot_(snapshot), target_(target), out_(out) {}

  const PeerMapping* MappingOf(const IndexHit& entry) const noexcept {
    if (entry.region >= snapshot_.by_row.size()) return nullptr;
    const PeerRegion& region = snapshot_.by_row[entry.region];
    return region.region_epoch == entry.region_epoch ? region.mapping.get() : nullptr;
  }

  void LookUp(const IndexReader& index, const BlockKey& key, std::uint64_t hint, Candidate& out) const noexcept {
    out.count = index.FindOnly(key, hint, out.replicas[0]) ? 1 : index.Find(key, out.replicas, hint);
    for (std::size_t i = 0; i < out.count; ++i) {
      out.mapping = MappingOf(out.replicas[i]);
      if (out.mapping != nullptr) out.mapping->generations.reader.Prefetch(out.replicas[i].block);
    }
  }

  // Takes the best usable source of a key; false (and the reason in out.end) if there is none.
  bool Take(const Candidate& candidate) {
    if (candidate.count != 1) return candidate.count == 0 ? End(MatchEnd::kAbsent) : TakeBest(candidate);
    const MatchEnd failure = Validate(candidate.replicas[0], candidate.mapping);
    if (failure != MatchEnd::kComplete) return End(failure);
    Append(candidate.replicas[0], *candidate.mapping);
    return true;
  }

 private:
  bool End(MatchEnd end) noexcept {
    out_.end = end;
    return false;
  }

  // kComplete: the source can be used.
  MatchEnd Validate(const IndexHit& entry, const PeerMapping* mapping) const noexcept {
    if (mapping == nullptr) return MatchEnd::kUnmapped;
    if (mapping->own && !target_.include_own) return MatchEnd::kAbsent;
    if (target_.must_reach && !mapping->PathTo(target_.device)) return MatchEnd::kUnmapped;
    if (mapping->generations.reader.Current(entry.block) != entry.generation) return MatchEnd::kStale;
    return MatchEnd::kComplete;
  }

  bool TakeBest(const Candidate& candidate) {
    const std::size_t count = candidate.count;
    const std::size_t turn = (target_.spread + out_.sources.size() / kMaxRunFromOneSource) % count;
    const IndexHit* best = nullptr;
    unsigned best_rank = 0;
    MatchEnd failure = MatchEnd::kAbsent;
    for (std::size_t i = 0; i < count; ++i) {
      const IndexHit& entry = candidate.replicas[i + turn < count ? i + turn : i + turn - count];
      const PeerMapping* mapping = MappingOf(entry);
      const MatchEnd judged = Validate(entry, mapping);
      if (judged != MatchEnd::kComplete) {
        // The most specific reason is reported: kUnmapped before kStale before kAbsent.
        if (failure == MatchEnd::kAbsent || judged == MatchEnd::kUnmapped) failure = judged;
        continue;
      }
      const unsigned rank = Rank(entry, *mapping);
      if (best == nullptr || rank < best_rank) {
        best = &entry;
        best_rank = rank;
      }
    }
    if (best == nullptr) return End(failure);
    Append(*best, *MappingOf(*best));
    return true;
  }

  // Lower is better: a region of our own, then a near one, then the source of the previous block,
  // so that copies stay long. After kMaxRunFromOneSource blocks another source is preferred, so
  // that several sources of a long prefix share the work.
  unsigned Rank(const IndexHit& entry, const PeerMapping& mapping) const {
    if (mapping.own) return 0;
    const std::optional<MemoryPath> path = mapping.PathTo(target_.device);
    const unsigned distance = path ? 1 + static_cast<unsigned>(*path) : 8;
    if (out_.sources.size() % kMaxRunFromOneSource == 0) return 2 * distance + 1;
    const BlockSource& last = out_.sources.back();
    return 2 * distance + (last.region != entry.region || last.region_epoch != entry.region_epoch);
  }

  void Append(const IndexHit& entry, const PeerMapping& mapping) {
    if (&mapping != last_mapping_) {
      last_mapping_ = &mapping;
      last_index_ = MappingIndex(entry);
    }
    out_.sources.push_back({entry.region, entry.region_epoch, entry.block, entry.generation, mapping.own});
    out_.mapping_of.push_back(last_index_);
  }

  std::uint16_t MappingIndex(const IndexHit& entry) {
    const std::shared_ptr<PeerMapping>& mapping = snapshot_.by_row[entry.region].mapping;
    const auto found = std::find(out_.mappings.begin(), out_.mappings.end(), mapping);
    if (found != out_.mappings.end()) return static_cast<std::uint16_t>(found - out_.mappings.begin());
    out_.mappings.push_back(mapping);
    return static_cast<std::uint16_t>(out_.mappings.size() - 1);
  }

  const PeerSnapshot& snapshot_;
  const FindTarget& target_;
  Match::Impl& out_;
  const PeerMapping* last_mapping_ = nullptr;
  std::uint16_t last_index_ = 0;
};

}  // namespace

void FindIn(const PeerSnapshot& snapshot, std::span<const BlockKey> keys, const FindTarget& target, Match::Impl& out) {
  const IndexReader& index = snapshot.registry.index();
  Matcher matcher(snapshot, target, out);
  std::array<Candidate, kJudgeBehind> ring;
  std::array<std::uint64_t, kProbeAhead> hints;
  std::size_t end = keys.size();  // keys from here on can't be part of the match
  for (std::size_t i = 0; i < std::min(kPrefetchAhead, end); ++i) index.Prefetch(keys[i]);
  for (std::size_t i = 0; i < std::min(kProbeAhead, end); ++i) hints[i] = index.Probe(keys[i]);
  out.end = MatchEnd::kComplete;
  std::size_t hint = 0;  // i % kProbeAhead
  for (std::size_t i = 0; i < end + kJudgeBehind; ++i) {
    Candidate& candidate = ring[i % kJudgeBehind];
    if (i >= kJudgeBehind && !matcher.Take(candidate)) return;
    if (i >= end) continue;
    if (i + kPrefetchAhead < end) index.Prefetch(keys[i + kPrefetchAhead]);
    matcher.LookUp(index, keys[i], hints[hint], candidate);
    if (i + kProbeAhead < end) hints[hint] = index.Probe(keys[i + kProbeAhead]);
    hint = hint + 1 == kProbeAhead ? 0 : hint + 1;
    if (candidate.count == 0) end = i + 1;
  }
}

}  // namespace kvm
