// The lookup is bound by memory latency: each key costs a few random cache lines of the index and one of
// a generation table. So it runs as a pipeline over the keys: prefetch the first slots of a chain
// kPrefetchAhead keys ahead, glance at them kGlanceAhead keys ahead (and prefetch on if the key is not
// there), read the slot and prefetch its generation, and judge that generation kJudgeBehind keys later.
#include "client/find.h"

#include <algorithm>
#include <array>

namespace kvm {
namespace {

constexpr std::size_t kPrefetchAhead = 24;
constexpr std::size_t kGlanceAhead = 12;
constexpr std::size_t kJudgeBehind = 8;
constexpr std::size_t kStretch = 128;  // blocks from one of several equally near sources before the next has its turn

struct Candidates {
  std::array<IndexHit, layout::kMaxReplicas> entries;
  std::size_t count = 0;
};

class Matcher {
 public:
  Matcher(const PeerSnapshot& snapshot, const FindTarget& target, Match::Impl& out) : snapshot_(snapshot), target_(target), out_(out) {}

  const PeerMapping* MappingOf(const IndexHit& entry) const {
    if (entry.region >= snapshot_.by_row.size()) return nullptr;
    const PeerRegion& region = snapshot_.by_row[entry.region];
    return region.region_epoch == entry.region_epoch ? region.mapping.get() : nullptr;
  }

  // Takes the best usable source of a key; false (and the reason in out.end) if there is none.
  bool Take(const Candidates& candidates) {
    if (candidates.count == 0) {
      out_.end = MatchEnd::kAbsent;
      return false;
    }
    const IndexHit* best = nullptr;
    unsigned best_rank = 0;
    // One replica is the rule; only several are worth a division.
    const std::size_t turn = candidates.count == 1 ? 0 : (target_.spread + out_.sources.size() / kStretch) % candidates.count;
    MatchEnd failure = MatchEnd::kAbsent;
    for (std::size_t i = 0; i < candidates.count; ++i) {
      const std::size_t at = i + turn;
      const IndexHit& entry = candidates.entries[at < candidates.count ? at : at - candidates.count];
      const PeerMapping* mapping = MappingOf(entry);
      if (mapping == nullptr) {
        failure = MatchEnd::kUnmapped;
        continue;
      }
      if (mapping->own && !target_.include_own) continue;
      const std::optional<MemoryPath> path = mapping->PathTo(target_.device);
      if (!path && target_.must_reach) {
        failure = MatchEnd::kUnmapped;
        continue;
      }
      if (mapping->generations.reader.Current(entry.block) != entry.generation) {
        if (failure == MatchEnd::kAbsent) failure = MatchEnd::kStale;
        continue;
      }
      const unsigned rank = Rank(entry, *mapping, path);
      if (best == nullptr || rank < best_rank) {
        best = &entry;
        best_rank = rank;
      }
    }
    if (best == nullptr) {
      out_.end = failure;
      return false;
    }
    out_.sources.push_back({best->region, best->region_epoch, best->block, best->generation, MappingOf(*best)->own});
    out_.mapping_of.push_back(MappingIndex(*best));
    return true;
  }

 private:
  // Lower is better: what is ours; what is near; then what continues the run before it, so that copies stay
  // long, but for no more than a stretch: several sources of a long prefix share the work.
  unsigned Rank(const IndexHit& entry, const PeerMapping& mapping, std::optional<MemoryPath> path) const {
    if (mapping.own) return 0;
    const unsigned distance = path ? 1 + static_cast<unsigned>(*path) : 8;
    if (out_.sources.size() % kStretch == 0) return 2 * distance + 1;
    const BlockSource& last = out_.sources.back();
    return 2 * distance + (last.region != entry.region || last.region_epoch != entry.region_epoch);
  }

  std::uint16_t MappingIndex(const IndexHit& entry) {
    const std::shared_ptr<PeerMapping>& mapping = snapshot_.by_row[entry.region].mapping;
    if (!out_.mapping_of.empty() && out_.mappings[out_.mapping_of.back()] == mapping) return out_.mapping_of.back();
    const auto found = std::find(out_.mappings.begin(), out_.mappings.end(), mapping);
    if (found != out_.mappings.end()) return static_cast<std::uint16_t>(found - out_.mappings.begin());
    out_.mappings.push_back(mapping);
    return static_cast<std::uint16_t>(out_.mappings.size() - 1);
  }

  const PeerSnapshot& snapshot_;
  const FindTarget& target_;
  Match::Impl& out_;
};

}  // namespace

void FindIn(const PeerSnapshot& snapshot, std::span<const BlockKey> keys, const FindTarget& target, Match::Impl& out) {
  const IndexReader& index = snapshot.registry.index();
  Matcher matcher(snapshot, target, out);
  std::array<Candidates, kJudgeBehind> ring;
  std::array<std::uint64_t, kGlanceAhead> hints;
  std::size_t end = keys.size();  // no key from here on can be part of the match
  for (std::size_t i = 0; i < std::min(kPrefetchAhead, end); ++i) index.Prefetch(keys[i]);
  for (std::size_t i = 0; i < std::min(kGlanceAhead, end); ++i) hints[i] = index.Glance(keys[i]);
  out.end = MatchEnd::kComplete;
  for (std::size_t i = 0; i < end + kJudgeBehind; ++i) {
    if (i >= kJudgeBehind) {
      if (!matcher.Take(ring[i % kJudgeBehind])) return;
    }
    if (i >= end) continue;
    if (i + kPrefetchAhead < end) index.Prefetch(keys[i + kPrefetchAhead]);
    Candidates& candidates = ring[i % kJudgeBehind];
    candidates.count = index.Find(keys[i], candidates.entries, hints[i % kGlanceAhead]);
    if (i + kGlanceAhead < end) hints[i % kGlanceAhead] = index.Glance(keys[i + kGlanceAhead]);
    for (std::size_t c = 0; c < candidates.count; ++c) {
      const PeerMapping* mapping = matcher.MappingOf(candidates.entries[c]);
      if (mapping != nullptr) mapping->generations.reader.Prefetch(candidates.entries[c].block);
    }
    if (candidates.count == 0) end = i + 1;
  }
}

}  // namespace kvm
