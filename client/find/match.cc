#include "kvclient/match.h"

#include <algorithm>
#include <utility>

#include "client/find/match_impl.h"

namespace kvm {

std::string_view MatchEndName(MatchEnd end) noexcept {
  switch (end) {
    case MatchEnd::kComplete: return "complete";
    case MatchEnd::kAbsent: return "absent";
    case MatchEnd::kStale: return "stale";
    case MatchEnd::kUnmapped: return "unmapped";
    case MatchEnd::kUnavailable: return "unavailable";
  }
  return "unknown";
}

Match::Match() = default;
Match::Match(std::shared_ptr<const Impl> impl, std::size_t first, std::size_t count)
    : impl_(std::move(impl)), first_(first), count_(count) {}
std::size_t Match::size() const noexcept { return count_; }
MatchEnd Match::end() const noexcept { return impl_ ? impl_->end : MatchEnd::kUnavailable; }
const std::optional<BeingComputed>& Match::being_computed() const noexcept {
  static const std::optional<BeingComputed> kNone;
  return impl_ ? impl_->being_computed : kNone;
}
const BlockSource& Match::operator[](std::size_t i) const noexcept { return impl_->sources[first_ + i]; }

Match Match::Slice(std::size_t first, std::size_t count) const {
  first = std::min(first, count_);
  return Match(impl_, first_ + first, std::min(count, count_ - first));
}

}  // namespace kvm
