// SlotPool: the blocks of one region of the mesh process, and which of them are in use.
//
// A slot is free, taken (its caller alone writes it, and its generation is odd), or published under
// a key. Take prefers free slots and then those that were used longest ago; a published slot is
// withdrawn as it is taken. A caller returns a slot only after nothing can write it any more, so
// late bytes never reach a slot that is published. Not thread-safe; the region is.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "kvclient/region.h"
#include "proto/base/secret_hash.h"

namespace kvm::mesh {

class SlotPool {
 public:
  explicit SlotPool(std::shared_ptr<Region> region);

  Region& region() noexcept { return *region_; }
  std::size_t size() const noexcept { return keys_.size(); }
  std::size_t taken() const noexcept { return taken_.size(); }

  // A slot that BeginWrite has been called for. Empty: all are taken.
  std::optional<BlockWrite> Take();
  // A taken slot that holds nothing. Takes no memory, so that it can't fail.
  void Return(std::uint32_t slot) noexcept;
  // Publishes taken slots, shallowest first, and makes them the last to be taken again. Those that
  // the region could not publish are free. A lack of memory costs a slot no more than its place in
  // Touch.
  void Publish(std::span<const PublishRequest> requests) noexcept;
  // The keys' slots become the last to be taken again, deeper blocks before shallower ones. Returns
  // how many there are.
  std::size_t Touch(std::span<const BlockKey> keys);

 private:
  using Order = std::list<std::uint32_t>;

  std::shared_ptr<Region> region_;
  Order order_;  // not taken; the next to be taken first
  Order taken_;
  std::vector<Order::iterator> at_;
  std::vector<std::optional<BlockKey>> keys_;
  std::unordered_map<BlockKey, std::uint32_t, SecretHash> slots_;
};

// A slot that Take has given, while it is written; it is returned if nothing was published in it.
class TakenSlot {
 public:
  TakenSlot(SlotPool& pool, std::uint32_t slot) noexcept : pool_(&pool), slot_(slot) {}
  ~TakenSlot() {
    if (pool_ != nullptr) pool_->Return(slot_);
  }
  TakenSlot(const TakenSlot&) = delete;
  TakenSlot& operator=(const TakenSlot&) = delete;
  void Published() noexcept { pool_ = nullptr; }

 private:
  SlotPool* pool_;
  std::uint32_t slot_;
};

}  // namespace kvm::mesh
