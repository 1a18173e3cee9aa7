// ReservedMemory: room for one of Asio's operations, taken in advance, so that what has to be
// posted later can't fail for lack of memory.
#pragma once

#include <array>
#include <cstddef>

namespace kvm::mesh {

class ReservedMemory {
 public:
  static constexpr std::size_t kBytes = 256;

  // For boost::asio::bind_allocator. One operation at a time; the memory outlives it.
  template <class T>
  class Allocator {
   public:
    using value_type = T;

    explicit Allocator(ReservedMemory& memory) noexcept : memory_(&memory) {}
    template <class U>
    Allocator(const Allocator<U>& other) noexcept : memory_(other.memory_) {}

    T* allocate(std::size_t) noexcept {
      static_assert(sizeof(T) <= kBytes && alignof(T) <= alignof(std::max_align_t));
      return reinterpret_cast<T*>(memory_->bytes_.data());
    }
    void deallocate(T*, std::size_t) noexcept {}

    template <class U>
    bool operator==(const Allocator<U>& other) const noexcept {
      return memory_ == other.memory_;
    }

   private:
    template <class U>
    friend class Allocator;

    ReservedMemory* memory_;
  };

  Allocator<std::byte> allocator() noexcept { return Allocator<std::byte>(*this); }

 private:
  alignas(std::max_align_t) std::array<std::byte, kBytes> bytes_{};
};

}  // namespace kvm::mesh
