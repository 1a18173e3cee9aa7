// Which worker serves which request of a replay.
#include <algorithm>

#include "client/kvctl/replay/replay.h"
#include "proto/base/random.h"

namespace kvm::ctl {
namespace {

constexpr std::size_t kStickyBlocks = 2;

std::uint64_t StickyHash(const Request& request) {
  // The last block may be partly filled: it changes with the conversation's next turn.
  const std::size_t full = request.hash_ids.empty() ? 0 : request.hash_ids.size() - 1;
  const std::size_t count = std::min(request.hash_ids.size(), std::max<std::size_t>(1, std::min(full, kStickyBlocks)));
  std::uint64_t hash = 0;
  for (std::size_t i = 0; i < count; ++i) hash = Mix(hash, request.hash_ids[i]);
  return hash;
}

}  // namespace

std::vector<std::uint32_t> AssignWorkers(const std::vector<Request>& requests, Routing routing, std::uint32_t workers, std::uint64_t seed) {
  std::vector<std::uint32_t> assigned;
  assigned.reserve(requests.size());
  SplitMix random(Mix(seed, 0x20));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    std::uint64_t worker = 0;
    switch (routing) {
      case Routing::kRoundRobin: worker = i % workers; break;
      case Routing::kSticky: worker = StickyHash(requests[i]) % workers; break;
      case Routing::kRandom: worker = random.Below(workers); break;
    }
    assigned.push_back(static_cast<std::uint32_t>(worker));
  }
  return assigned;
}

std::string_view RoutingName(Routing routing) noexcept {
  switch (routing) {
    case Routing::kRoundRobin: return "round-robin";
    case Routing::kSticky: return "sticky";
    case Routing::kRandom: return "random";
  }
  return "?";
}

}  // namespace kvm::ctl
