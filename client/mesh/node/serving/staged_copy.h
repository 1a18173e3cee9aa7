// StagedCopy: blocks of this node's memory on their way to a peer. A thread copies them to staging
// memory while the caller does something else, such as sending the ones before. Of the io_context's
// thread.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "client/mesh/memory/staging_batch.h"
#include "client/mesh/node/state/node_state.h"

namespace kvm::mesh {

class StagedCopy {
 public:
  // Begins with the leading ones of `keys`, as many as staging has room for. `node` and `keys` live
  // as long as this.
  StagedCopy(NodeState& node, std::shared_ptr<SlotPool> pool, std::span<const BlockKey> keys, Time deadline);
  StagedCopy(const StagedCopy&) = delete;
  StagedCopy& operator=(const StagedCopy&) = delete;

  // That are being copied; 0: staging memory is full.
  std::size_t wanted() const noexcept { return keys_.size(); }
  // Once: how many leading ones of them are here, with their checksums. Fewer than were wanted: the
  // next one is not in memory. kResourceExhausted.
  Awaitable<Result<std::size_t>> Copied();
  const StagingBatch& blocks() const noexcept { return batch_; }

 private:
  StagingBatch batch_;
  const std::span<const BlockKey> keys_;
  // Destroyed first, since it waits for the thread, which writes to the batch.
  std::optional<WorkThreads::Begun<std::size_t>> copying_;
};

}  // namespace kvm::mesh
