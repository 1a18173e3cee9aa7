// Vectors on huge pages, where the system has them: a policy accesses its memory at random, and
// with small pages most of that time is address translation. If the kernel refuses, accesses are
// slower, and nothing else changes.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <vector>

namespace kvm::policy {

template <class T>
struct HugePageAllocator {
  using value_type = T;
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;

  HugePageAllocator() = default;
  template <class U>
  HugePageAllocator(const HugePageAllocator<U>&) noexcept {}

  T* allocate(std::size_t count) {
    std::size_t bytes = count * sizeof(T);
    if (bytes < kHugePage) return static_cast<T*>(::operator new(bytes));
    bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* memory = std::aligned_alloc(kHugePage, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    static_cast<void>(::madvise(memory, bytes, MADV_HUGEPAGE));
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t count) noexcept { count * sizeof(T) < kHugePage ? ::operator delete(memory) : std::free(memory); }
  friend bool operator==(const HugePageAllocator&, const HugePageAllocator&) noexcept { return true; }
};

template <class T>
using HugeVector = std::vector<T, HugePageAllocator<T>>;

// Elements of zeros. The kernel gives their memory as it is touched, so that a large array costs
// nothing before.
template <class T>
class ZeroedArray {
 public:
  static_assert(std::is_trivially_copyable_v<T>);

  explicit ZeroedArray(std::size_t count) : count_(count) {
    void* memory = ::mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    if (bytes() >= HugePageAllocator<T>::kHugePage) static_cast<void>(::madvise(memory, bytes(), MADV_HUGEPAGE));
    elements_ = static_cast<T*>(memory);
  }
  ~ZeroedArray() { ::munmap(elements_, bytes()); }
  ZeroedArray(const ZeroedArray&) = delete;
  ZeroedArray& operator=(const ZeroedArray&) = delete;

  std::size_t size() const noexcept { return count_; }
  T& operator[](std::size_t at) noexcept { return elements_[at]; }
  const T& operator[](std::size_t at) const noexcept { return elements_[at]; }

 private:
  std::size_t bytes() const noexcept { return count_ * sizeof(T); }

  const std::size_t count_;
  T* elements_;
};

}  // namespace kvm::policy
