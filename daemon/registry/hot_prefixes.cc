#include "daemon/registry/hot_prefixes.h"

#include <algorithm>

#include "daemon/system/work_meter.h"

namespace kvm::daemon {
namespace {

constexpr WorkUnits kNoteUnits = 8;  // a few steps of two trees

}  // namespace

void HotPrefixes::Note(const BlockKey& key, std::uint32_t depth, const std::string& model_id, std::uint32_t blocks,
                       std::chrono::steady_clock::time_point now) {
  Spend(kNoteUnits);
  Fade(now);
  const Words words{key.lo, key.hi};
  auto found = prefixes_.find(words);
  if (found != prefixes_.end()) {
    by_use_.erase({found->second.prefix.uses, found->second.turn, words});
  } else {
    if (prefixes_.size() >= kMost) {
      prefixes_.erase(std::get<Words>(*by_use_.begin()));
      by_use_.erase(by_use_.begin());
    }
    found = prefixes_.emplace(words, Noted{{key, depth, model_id}}).first;
  }
  Noted& noted = found->second;
  ++noted.prefix.uses;
  noted.prefix.blocks += blocks;
  noted.turn = ++turn_;
  by_use_.emplace(noted.prefix.uses, noted.turn, words);
}

std::vector<HotPrefixes::Prefix> HotPrefixes::List(std::size_t most, std::chrono::steady_clock::time_point now) {
  Fade(now);
  std::vector<Prefix> out;
  for (auto at = by_use_.rbegin(); at != by_use_.rend() && out.size() < most; ++at)
    out.push_back(prefixes_.at(std::get<Words>(*at)).prefix);
  return out;
}

void HotPrefixes::Fade(std::chrono::steady_clock::time_point now) {
  if (prefixes_.empty()) faded_ = now;
  if (now - faded_ < kHotHalfLife) return;
  Spend(2 * prefixes_.size());
  // After 64 halvings nothing is left.
  const auto halvings = static_cast<unsigned>(std::min<std::int64_t>((now - faded_) / kHotHalfLife, 63));
  faded_ = now;
  by_use_.clear();
  for (auto at = prefixes_.begin(); at != prefixes_.end();) {
    Prefix& prefix = at->second.prefix;
    prefix.uses >>= halvings;
    prefix.blocks >>= halvings;
    if (prefix.uses > 0) by_use_.emplace(prefix.uses, at->second.turn, at->first);
    at = prefix.uses > 0 ? std::next(at) : prefixes_.erase(at);
  }
}

}  // namespace kvm::daemon
