// ArrivingBlocks: slots for blocks that follow one another and are received together.
//
// From the constructor until Publish the slots' generations are odd, and the transfer alone writes
// to them. Checksums are computed piece by piece, behind the transfer. A slot that was not
// published is returned as one that holds nothing, after the transfer has ended. Of the
// io_context's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "client/mesh/memory/checksum.h"
#include "client/mesh/memory/slot_pool.h"
#include "client/mesh/sources/source.h"
#include "client/mesh/transfer/transfer.h"
#include "proto/base/fault_switch.h"

namespace kvm::mesh {

class ArrivingBlocks final : public Arrivals {
 public:
  // Takes the slots; size() is less than `blocks` if the pool does not have as many.
  ArrivingBlocks(std::shared_ptr<SlotPool> pool, std::size_t blocks);
  ~ArrivingBlocks() override;
  ArrivingBlocks(const ArrivingBlocks&) = delete;
  ArrivingBlocks& operator=(const ArrivingBlocks&) = delete;

  std::size_t size() const noexcept { return slots_.size(); }
  // Where the blocks go, one part each.
  ReceivedParts memory() const noexcept { return memory_; }
  void Arrived(std::size_t bytes) noexcept override;
  // After all bytes have arrived: how many leading blocks have these checksums, which are as many
  // as there are blocks.
  template <class Checksums>
  std::size_t Good(const Checksums& expected) noexcept {
    Arrived(BytesOf(memory_));
    const bool unchecked = KVM_FAULT_SWITCH(blocks_without_checksum);
    std::size_t good = 0;
    while (good < size() && (unchecked || checksums_[good] == expected[static_cast<int>(good)])) ++good;
    return good;
  }
  // Publishes the first `count` under the keys of `job` from `first` on. Once. Precondition: Good
  // has said so.
  void Publish(const FetchJob& job, std::size_t first, std::size_t count);

 private:
  const std::shared_ptr<SlotPool> pool_;
  std::vector<BlockWrite> slots_;
  std::vector<std::span<std::byte>> memory_;
  std::vector<std::uint64_t> checksums_;  // of the blocks that have arrived
  RunningChecksum begun_;                 // of the one that has arrived in part
  std::size_t summed_ = 0;                // bytes that are in a checksum
  std::size_t published_ = 0;
};

}  // namespace kvm::mesh
