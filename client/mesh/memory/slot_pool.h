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

namespace kvm::mesh {

class SlotPool {
 public:
  explicit SlotPool(std::shared_ptr<Region> region);

  Region& region() noexcept { return *region_; }
  std::size_t size() const noexcept { return keys_.size(); }
  std::size_t taken() const noexcept { return keys_.size() - order_.size(); }

  // A slot that BeginWrite has been called for. Empty: all are taken.
  std::optional<BlockWrite> Take();
  // A taken slot that holds nothing.
  void Return(std::uint32_t slot);
  // Publishes taken slots, shallowest first, and makes them the last to be taken again. Those that
  // the region could not publish are free.
  void Publish(std::span<const PublishRequest> requests);
  // The keys' slots become the last to be taken again, deeper blocks before shallower ones. Returns
  // how many there are.
  std::size_t Touch(std::span<const BlockKey> keys);

 private:
  using Order = std::list<std::uint32_t>;
  void Append(std::uint32_t slot);

  std::shared_ptr<Region> region_;
  Order order_;  // not taken; the next to be taken first
  std::vector<Order::iterator> at_;
  std::vector<std::optional<BlockKey>> keys_;
  std::unordered_map<BlockKey, std::uint32_t> slots_;
};

}  // namespace kvm::mesh
