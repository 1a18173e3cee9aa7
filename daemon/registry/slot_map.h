// SlotMap: for each block of one region, the index slot of its entry; 4 bytes a block.
//
// It is anonymous memory, whose pages the kernel allocates when they are touched. So a region costs
// memory for the blocks that it publishes, and not for those that it claims to have.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kvm/error.h"

namespace kvm::daemon {

class SlotMap {
 public:
  static constexpr std::uint32_t kNone = 0xFFFFFFFF;

  SlotMap() = default;
  // kResourceExhausted: no memory.
  [[nodiscard]] static Result<SlotMap> Create(std::uint32_t block_count) {
    SlotMap map;
    const std::size_t bytes = std::size_t{block_count} * sizeof(std::uint32_t);
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return MakeError(Errc::kResourceExhausted, "no memory to index " + std::to_string(block_count) + " blocks");
    map.next_ = static_cast<std::uint32_t*>(memory);
    map.block_count_ = block_count;
    return map;
  }
  SlotMap(SlotMap&& other) noexcept : next_(std::exchange(other.next_, nullptr)), block_count_(std::exchange(other.block_count_, 0)) {}
  SlotMap& operator=(SlotMap&& other) noexcept {
    std::swap(next_, other.next_);
    std::swap(block_count_, other.block_count_);
    return *this;
  }
  ~SlotMap() {
    if (next_ != nullptr) ::munmap(next_, std::size_t{block_count_} * sizeof(std::uint32_t));
  }

  // Precondition of all three: block < block_count().
  std::uint32_t Get(std::uint32_t block) const noexcept { return next_[block] - 1; }
  void Set(std::uint32_t block, std::uint64_t slot) noexcept { next_[block] = static_cast<std::uint32_t>(slot) + 1; }
  [[gnu::always_inline]] void Prefetch(std::uint32_t block) const noexcept { __builtin_prefetch(&next_[block], 1); }

  std::uint32_t block_count() const noexcept { return block_count_; }

 private:
  std::uint32_t* next_ = nullptr;  // slot + 1; 0: none
  std::uint32_t block_count_ = 0;
};

}  // namespace kvm::daemon
