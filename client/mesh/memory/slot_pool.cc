#include "client/mesh/memory/slot_pool.h"

#include <new>

namespace kvm::mesh {

SlotPool::SlotPool(std::shared_ptr<Region> region)
    : region_(std::move(region)), at_(region_->block_count()), keys_(region_->block_count()) {
  for (std::uint32_t slot = 0; slot < keys_.size(); ++slot) at_[slot] = order_.insert(order_.end(), slot);
}

std::optional<BlockWrite> SlotPool::Take() {
  if (order_.empty()) return std::nullopt;
  const std::uint32_t slot = order_.front();
  taken_.splice(taken_.end(), order_, order_.begin());
  if (keys_[slot]) {
    if (const auto found = slots_.find(*keys_[slot]); found != slots_.end() && found->second == slot) slots_.erase(found);
    keys_[slot].reset();
  }
  return region_->BeginWrite(slot);
}

void SlotPool::Return(std::uint32_t slot) noexcept { order_.splice(order_.begin(), taken_, at_[slot]); }

void SlotPool::Publish(std::span<const PublishRequest> requests) noexcept {
  static_cast<void>(region_->Publish(requests));
  for (auto request = requests.rbegin(); request != requests.rend(); ++request) {
    const std::uint32_t slot = request->write.block;
    if ((region_->CurrentGeneration(slot) & 1) != 0) {
      Return(slot);
      continue;
    }
    try {
      slots_[request->key] = slot;
      keys_[slot] = request->key;
    } catch (const std::bad_alloc&) {
      keys_[slot].reset();  // it is published, and no slot that Touch finds
    }
    order_.splice(order_.end(), taken_, at_[slot]);
  }
}

std::size_t SlotPool::Touch(std::span<const BlockKey> keys) {
  std::size_t touched = 0;
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    const auto found = slots_.find(*key);
    if (found == slots_.end()) continue;
    order_.splice(order_.end(), order_, at_[found->second]);
    ++touched;
  }
  return touched;
}

}  // namespace kvm::mesh
