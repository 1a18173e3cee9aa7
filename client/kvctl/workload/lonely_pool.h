// LonelyPool: the model of a replay worker that shares nothing. It counts the leading blocks of a
// request that the worker's own pool would have held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "client/kvctl/workload/block_pool.h"
#include "client/kvctl/workload/request.h"
#include "proto/base/random.h"

namespace kvm::ctl {

class LonelyPool {
 public:
  LonelyPool(policy::PolicyKind kind, std::uint32_t blocks) : pool_(kind, blocks) {}

  std::size_t Serve(const Request& request) {
    keys_.clear();
    BlockKey chain;
    for (const std::uint64_t id : request.hash_ids) keys_.push_back(chain = {Mix(chain.lo, id), id});
    return BlockPool::Hits(pool_.Serve(keys_));
  }

 private:
  BlockPool pool_;
  std::vector<BlockKey> keys_;
};

}  // namespace kvm::ctl
