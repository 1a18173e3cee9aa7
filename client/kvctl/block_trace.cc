#include "client/kvctl/block_trace.h"

#include <algorithm>
#include <unordered_map>

#include "client/kvctl/random.h"

namespace kvm::ctl {

BlockTrace::BlockTrace(const std::vector<Request>& requests) {
  std::unordered_map<std::uint64_t, std::uint32_t> numbers;
  for (const Request& request : requests) {
    for (const std::uint64_t id : request.hash_ids) {
      const auto [at, added] = numbers.try_emplace(id, static_cast<std::uint32_t>(numbers.size()));
      // Ids of a trace may be small numbers, keys are hashes.
      if (added) keys_.push_back(Mix(at->second + std::uint64_t{1}));
      blocks_.push_back(at->second);
    }
    ends_.push_back(blocks_.size());
  }
}

std::uint64_t BlockTrace::ReusedBlocks() const {
  std::uint64_t hits = 0;
  std::uint32_t seen = 0;  // blocks below have been used
  for (std::size_t request = 0; request < requests(); ++request) {
    bool leading = true;
    for (const std::uint32_t block : (*this)[request]) {
      leading = leading && block < seen;
      hits += leading ? 1 : 0;
    }
    for (const std::uint32_t block : (*this)[request]) seen = std::max(seen, block + 1);
  }
  return hits;
}

}  // namespace kvm::ctl
