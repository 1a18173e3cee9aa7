#include "client/mesh/node/staging_batch.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>

namespace kvm::mesh {

std::uint64_t TransferChecksum(std::span<const std::byte> bytes) noexcept { return XXH3_64bits(bytes.data(), bytes.size()); }

StagingBatch::StagingBatch(std::shared_ptr<SlotPool> pool, std::size_t blocks) : pool_(std::move(pool)) {
  while (slots_.size() < blocks) {
    const std::optional<BlockWrite> write = pool_->Take();
    if (!write) break;
    slots_.push_back(write->block);
  }
}

StagingBatch::~StagingBatch() {
  for (const std::uint32_t slot : slots_) pool_->Return(slot);
}

std::size_t StagingBatch::Import(Client& client, std::span<const BlockKey> keys, Deadline deadline) {
  checksums_.clear();
  FindOptions options;
  options.destination = &pool_->region();
  const Match match = client.Find(keys.first(std::min(keys.size(), slots_.size())), options);
  if (match.empty()) return 0;
  Result<ImportTicket> ticket = client.Import(match, pool_->region(), std::span(slots_).first(match.size()), {.deadline = deadline});
  if (!ticket || !ticket->Wait(deadline)) return 0;
  for (std::size_t i = 0; i < ticket->result().valid; ++i) checksums_.push_back(TransferChecksum(bytes(i)));
  return checksums_.size();
}

std::span<const std::byte> StagingBatch::bytes(std::size_t i) const noexcept {
  return {pool_->region().BlockData(slots_[i]), pool_->region().block_bytes()};
}

}  // namespace kvm::mesh
