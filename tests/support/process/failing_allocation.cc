#include "tests/support/process/failing_allocation.h"

#include <cstddef>
#include <cstdlib>
#include <new>

#include "proto/base/sanitizers.h"

namespace {

thread_local long g_until_failure = -1;
thread_local bool* g_failed = nullptr;

[[maybe_unused]] bool FailsNow() noexcept {
  if (g_until_failure < 0 || g_until_failure-- > 0) return false;
  if (g_failed != nullptr) *g_failed = true;
  return true;
}

}  // namespace

// Sanitizers have these already, and would find memory from their own freed here.
#if !defined(KVM_ADDRESS_SANITIZER) && !defined(KVM_THREAD_SANITIZER)
// Asio takes memory here.
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  void* out = nullptr;
  return FailsNow() || ::posix_memalign(&out, alignment, size) != 0 ? nullptr : out;
}
void* operator new(std::size_t size) {
  void* const out = FailsNow() ? nullptr : std::malloc(size == 0 ? 1 : size);
  if (out == nullptr) throw std::bad_alloc();
  return out;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
#endif

namespace kvm::test {

void FailAllocation(long others, bool* failed) noexcept {
  g_failed = failed;
  g_until_failure = others;
}

}  // namespace kvm::test
