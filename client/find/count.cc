#include "client/find/count.h"

#include "client/find/lookup_pipeline.h"

namespace kvm {

CountedKeys CountIn(const PeerSnapshot& snapshot, std::span<const BlockKey> keys, const FindTarget& target) noexcept {
  const UsableSources sources(snapshot, target);
  CountedKeys counted;
  const auto take = [&](const Candidate& candidate) {
    MatchEnd judged = MatchEnd::kAbsent;
    if (candidate.count == 1) {
      judged = sources.Validate(candidate.replicas[0], candidate.mapping);
    } else if (candidate.count != 0) {
      judged = sources.EachUsable(candidate, 0, [](const IndexHit&, const PeerMapping&) {});
    }
    counted.found += judged == MatchEnd::kComplete;
    return judged;
  };
  counted.end = LookUpKeys(snapshot.registry, sources, keys, take);
  return counted;
}

}  // namespace kvm
