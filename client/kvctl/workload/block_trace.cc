#include "client/kvctl/workload/block_trace.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "proto/base/random.h"

namespace kvm::ctl {
namespace {

constexpr std::uint32_t kNoParent = std::numeric_limits<std::uint32_t>::max();

struct ChainedId {
  std::uint32_t parent = kNoParent;  // number of the block before it
  std::uint64_t id = 0;

  bool operator==(const ChainedId&) const = default;
};

struct HashChainedId {
  std::size_t operator()(const ChainedId& block) const noexcept { return Mix(block.parent, block.id); }
};

}  // namespace

BlockTrace::BlockTrace(const std::vector<Request>& requests) {
  std::unordered_map<ChainedId, std::uint32_t, HashChainedId> numbers;
  for (const Request& request : requests) {
    std::uint32_t parent = kNoParent;
    for (const std::uint64_t id : request.hash_ids) {
      const auto [at, added] = numbers.try_emplace({parent, id}, static_cast<std::uint32_t>(numbers.size()));
      // Policies expect hashes as keys, but the ids of a trace may be small numbers.
      if (added) keys_.push_back(Mix(at->second + std::uint64_t{1}));
      blocks_.push_back(at->second);
      parent = at->second;
    }
    ends_.push_back(blocks_.size());
  }
}

std::uint64_t BlockTrace::ReusedBlocks() const {
  std::uint64_t hits = 0;
  std::uint32_t seen = 0;  // blocks with smaller numbers have been used
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
