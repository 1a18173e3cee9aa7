// SlotVersions: the version words of an index, for a reader that remembers what it has read.
//
// A slot's version changes with each write of the slot, and is odd during one: a slot need not be
// read again while its version is the same (layout.h). Thread-safe; must not outlive the mapping.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "proto/shm/layout.h"
#include "proto/shm/registry_view.h"

namespace kvm {

class SlotVersions {
 public:
  SlotVersions(const layout::IndexSlot* slots, std::uint64_t count) noexcept : slots_(slots), count_(count) {}
  // RegistryView::Open has compared the offset with the segment's size, and kvmd writes it once.
  explicit SlotVersions(const RegistryView& registry) noexcept
      : slots_(reinterpret_cast<const layout::IndexSlot*>(reinterpret_cast<const std::byte*>(&registry.header()) +
                                                          registry.header().index_offset)),
        count_(registry.index().slots()) {}

  // Precondition: slot < slots(). What was read of the slot after this call is of this version if a
  // second call afterwards returns the same, even one.
  std::uint32_t At(std::uint64_t slot) const noexcept { return slots_[slot].version.load(std::memory_order_acquire); }
  std::uint64_t slots() const noexcept { return count_; }

 private:
  const layout::IndexSlot* slots_;
  std::uint64_t count_;
};

}  // namespace kvm
