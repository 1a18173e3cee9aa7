#include "client/find/marked_keys.h"

#include <chrono>

namespace kvm {
namespace {

bool MayBeMarked(std::span<const BlockKey> keys, std::size_t first, std::size_t at) noexcept {
  return at == first || at + 1 == keys.size() || InSample(keys[at], kMarkOneIn);
}

}  // namespace

std::vector<BlockKey> KeysToMark(std::span<const BlockKey> missing, std::size_t most) {
  std::vector<BlockKey> keys;
  for (std::size_t at = 0; at < missing.size() && keys.size() < most; ++at) {
    if (MayBeMarked(missing, 0, at)) keys.push_back(missing[at]);
  }
  return keys;
}

std::optional<BeingComputed> FindMark(const MarkReader& marks, std::span<const BlockKey> keys, std::size_t found,
                                      std::uint64_t client) noexcept {
  if (!marks.any()) return std::nullopt;
  const std::chrono::nanoseconds now = std::chrono::steady_clock::now().time_since_epoch();
  const auto now_ns = static_cast<std::uint64_t>(now.count());
  const auto in_ms = [](std::uint64_t ns) { return std::chrono::milliseconds(ns / 1'000'000); };
  std::optional<BeingComputed> first;
  for (std::size_t at = found; at < keys.size(); ++at) {
    layout::MarkInfo mark{};
    if (!MayBeMarked(keys, found, at) || !marks.Find(keys[at], now_ns, mark)) continue;
    if (!first) {
      const std::uint64_t age = now_ns > mark.marked_ns ? now_ns - mark.marked_ns : 0;
      first = BeingComputed{at + 1, in_ms(age), in_ms(mark.expires_ns - now_ns), mark.client_id, mark.client_id == client};
    } else if (mark.client_id == first->client_id) {
      first->blocks = at + 1;
    } else {
      break;
    }
  }
  return first;
}

}  // namespace kvm
