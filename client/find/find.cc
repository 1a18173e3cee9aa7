#include "client/find/find.h"

#include <algorithm>

#include "client/find/lookup_pipeline.h"

namespace kvm {
namespace {

// So many blocks are taken from one of several equally near sources, then the next source is used
constexpr std::size_t kMaxRunFromOneSource = 128;

class Matcher {
 public:
  Matcher(const PeerSnapshot& snapshot, const FindTarget& target, Match::Impl& out)
      : snapshot_(snapshot), target_(target), sources_(snapshot, target), out_(out) {}

  const UsableSources& sources() const noexcept { return sources_; }

  // Takes the best usable source of a key; else says why there is none.
  [[gnu::always_inline]] MatchEnd Take(const Candidate& candidate) {
    if (candidate.count != 1) [[unlikely]]
      return candidate.count == 0 ? MatchEnd::kAbsent : TakeBest(candidate);
    const MatchEnd judged = sources_.Validate(candidate.replicas[0], candidate.mapping);
    if (judged == MatchEnd::kComplete) Append(candidate.replicas[0], *candidate.mapping);
    return judged;
  }

 private:
  [[gnu::noinline]] MatchEnd TakeBest(const Candidate& candidate) {
    const std::size_t turn = (target_.spread + out_.sources.size() / kMaxRunFromOneSource) % candidate.count;
    const IndexHit* best = nullptr;
    const PeerMapping* best_mapping = nullptr;
    unsigned best_rank = 0;
    const MatchEnd judged = sources_.EachUsable(candidate, turn, [&](const IndexHit& entry, const PeerMapping& mapping) {
      const unsigned rank = Rank(entry, mapping);
      if (best != nullptr && rank >= best_rank) return;
      best = &entry;
      best_mapping = &mapping;
      best_rank = rank;
    });
    if (judged == MatchEnd::kComplete) Append(*best, *best_mapping);
    return judged;
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

  [[gnu::noinline]] std::uint16_t MappingIndex(const IndexHit& entry) {
    const std::shared_ptr<PeerMapping>& mapping = snapshot_.by_row[entry.region].mapping;
    const auto found = std::find(out_.mappings.begin(), out_.mappings.end(), mapping);
    if (found != out_.mappings.end()) return static_cast<std::uint16_t>(found - out_.mappings.begin());
    out_.mappings.push_back(mapping);
    return static_cast<std::uint16_t>(out_.mappings.size() - 1);
  }

  const PeerSnapshot& snapshot_;
  const FindTarget& target_;
  const UsableSources sources_;
  Match::Impl& out_;
  const PeerMapping* last_mapping_ = nullptr;
  std::uint16_t last_index_ = 0;
};

}  // namespace

void FindIn(const PeerSnapshot& snapshot, std::span<const BlockKey> keys, const FindTarget& target, Match::Impl& out) {
  Matcher matcher(snapshot, target, out);
  const auto take = [&](const Candidate& candidate) { return matcher.Take(candidate); };
  out.end = LookUpKeys(snapshot.registry, matcher.sources(), keys, take);
}

}  // namespace kvm
