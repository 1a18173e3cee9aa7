#include "client/mesh/node/serving/staged_copy.h"

#include <algorithm>

namespace kvm::mesh {

StagedCopy::StagedCopy(NodeState& node, std::shared_ptr<SlotPool> pool, std::span<const BlockKey> keys, Time deadline)
    : batch_(std::move(pool), keys.size()), keys_(keys.first(std::min(batch_.size(), keys.size()))) {
  if (keys_.empty()) return;
  copying_.emplace(node.copy_threads, "copy for a peer", [this, &node, deadline] { return batch_.Import(*node.client, keys_, deadline); });
}

Awaitable<Result<std::size_t>> StagedCopy::Copied() {
  if (!copying_) co_return std::size_t{0};
  co_return co_await copying_->Ended();
}

}  // namespace kvm::mesh
