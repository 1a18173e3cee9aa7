#include "client/mesh/memory/staging_batch.h"

#include <algorithm>

#include "client/mesh/memory/checksum.h"

namespace kvm::mesh {

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
  for (std::size_t i = 0; i < ticket->result().valid; ++i) checksums_.push_back(BlockChecksum(bytes(i)));
  return checksums_.size();
}

std::vector<bool> StagingBatch::ImportEach(Client& client, std::span<const BlockKey> keys, Deadline deadline) {
  std::vector<bool> out(keys.size(), false);
  checksums_.assign(keys.size(), 0);
  FindOptions options;
  options.destination = &pool_->region();
  for (std::size_t i = 0; i < std::min(keys.size(), slots_.size()); ++i) {
    const Match match = client.Find(keys.subspan(i, 1), options);
    if (match.empty()) continue;
    Result<ImportTicket> ticket =
        client.Import(match, pool_->region(), std::span(slots_).subspan(i, 1), {.deadline = deadline, .counts_as_use = false});
    if (!ticket || !ticket->Wait(deadline) || ticket->result().valid == 0) continue;
    checksums_[i] = BlockChecksum(bytes(i));
    out[i] = true;
  }
  return out;
}

std::span<const std::byte> StagingBatch::bytes(std::size_t i) const noexcept {
  return {pool_->region().BlockData(slots_[i]), pool_->region().block_bytes()};
}

}  // namespace kvm::mesh
