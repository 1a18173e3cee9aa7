#include "client/mesh/node/peers/arriving_blocks.h"

#include <algorithm>

namespace kvm::mesh {

ArrivingBlocks::ArrivingBlocks(std::shared_ptr<SlotPool> pool, std::size_t blocks) : pool_(std::move(pool)) {
  slots_.reserve(blocks);
  memory_.reserve(blocks);
  checksums_.reserve(blocks);
  Region& region = pool_->region();
  while (slots_.size() < blocks) {
    const std::optional<BlockWrite> write = pool_->Take();
    if (!write) break;
    slots_.push_back(*write);
    memory_.emplace_back(region.BlockData(write->block), region.block_bytes());
  }
}

ArrivingBlocks::~ArrivingBlocks() {
  for (std::size_t i = published_; i < slots_.size(); ++i) pool_->Return(slots_[i].block);
}

void ArrivingBlocks::Arrived(std::size_t bytes) noexcept {
  while (summed_ < bytes && checksums_.size() < memory_.size()) {
    const std::span<std::byte> block = memory_[checksums_.size()];
    const std::size_t from = summed_ % block.size();
    const std::size_t piece = std::min(bytes - summed_, block.size() - from);
    summed_ += piece;
    if (piece == block.size()) {
      checksums_.push_back(BlockChecksum(block));
      continue;
    }
    begun_.Add(block.subspan(from, piece));
    if (from + piece == block.size()) checksums_.push_back(begun_.Take());
  }
}

void ArrivingBlocks::Publish(const FetchJob& job, std::size_t first, std::size_t count) {
  std::vector<PublishRequest> requests;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t key = first + i;
    requests.push_back({job.keys[key], key == 0 ? job.parent : job.keys[key - 1], job.depth + static_cast<std::uint32_t>(key), slots_[i]});
  }
  pool_->Publish(requests);
  published_ = count;
}

}  // namespace kvm::mesh
