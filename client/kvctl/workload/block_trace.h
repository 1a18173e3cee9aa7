// BlockTrace: a request trace in the form that an eviction policy needs: blocks are numbered from
// 0, in the order of their first use.
//
// Two blocks are the same if their ids and the ids of all blocks before them in their requests are
// the same, as for keys (kvm/block_key.h); the ids of a trace may name a block's content only. So a
// block has one depth and one parent, occurs at most once in a request, and has a higher number
// than its parent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "client/kvctl/workload/request.h"
#include "daemon/policy/eviction_policy.h"

namespace kvm::ctl {

class BlockTrace {
 public:
  explicit BlockTrace(const std::vector<Request>& requests);

  std::size_t requests() const noexcept { return ends_.size(); }
  std::size_t blocks() const noexcept { return blocks_.size(); }
  std::uint32_t distinct() const noexcept { return static_cast<std::uint32_t>(keys_.size()); }

  std::span<const std::uint32_t> operator[](std::size_t request) const {
    const std::size_t begin = request == 0 ? 0 : ends_[request - 1];
    return {blocks_.data() + begin, ends_[request] - begin};
  }
  policy::Key key(std::uint32_t block) const { return keys_[block]; }

  // Hits of a cache that never evicts.
  std::uint64_t ReusedBlocks() const;

 private:
  std::vector<std::uint32_t> blocks_;  // of all requests, one after the other
  std::vector<std::size_t> ends_;      // [requests]
  std::vector<policy::Key> keys_;      // [distinct]
};

}  // namespace kvm::ctl
