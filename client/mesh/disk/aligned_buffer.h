// AlignedBuffer: memory that O_DIRECT takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

namespace kvm::mesh {

// Offsets, lengths and addresses of direct reads and writes are multiples of it. No common device
// needs more; a file system that does is used without O_DIRECT (SegmentFile).
inline constexpr std::uint64_t kDiskPage = 4096;

constexpr std::uint64_t WholePages(std::uint64_t bytes) noexcept { return (bytes + kDiskPage - 1) / kDiskPage * kDiskPage; }

inline bool IsAligned(const void* address) noexcept { return reinterpret_cast<std::uintptr_t>(address) % kDiskPage == 0; }

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // Zeroed, and rounded up to whole pages. Throws std::bad_alloc.
  explicit AlignedBuffer(std::uint64_t bytes) : size_(WholePages(bytes)) {
    if (size_ == 0) return;
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(kDiskPage, size_)));
    if (!data_) throw std::bad_alloc();
    std::uninitialized_fill_n(data_.get(), size_, std::byte{0});
  }

  std::byte* data() const noexcept { return data_.get(); }
  std::uint64_t size() const noexcept { return size_; }
  std::span<std::byte> page(std::size_t index = 0) const noexcept { return {data_.get() + index * kDiskPage, kDiskPage}; }

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::uint64_t size_ = 0;
};

}  // namespace kvm::mesh
