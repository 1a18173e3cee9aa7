#include "client/connection/owner_process.h"

#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <new>
#include <string>

namespace kvm {
namespace {

using Mark = std::atomic<std::uint64_t>;

// Null if this kernel has no such pages; then the PID is used.
Mark* MakePage() noexcept {
  const auto bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  void* const page = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return nullptr;
  if (::madvise(page, bytes, MADV_WIPEONFORK) == 0) return new (page) Mark(0);
  ::munmap(page, bytes);
  return nullptr;
}

// A mark that no other process ever has, unlike a PID.
std::uint64_t NewMark() noexcept {
  std::uint64_t mark = 0;
  if (::getrandom(&mark, sizeof(mark), 0) != sizeof(mark)) {
    mark = static_cast<std::uint64_t>(::getpid()) << 40 ^
           static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  }
  return mark | 1;
}

std::uint64_t MarkOfThisProcess() noexcept {
  static Mark* const page = MakePage();
  if (page == nullptr) return static_cast<std::uint64_t>(::getpid());
  std::uint64_t mark = page->load(std::memory_order_relaxed);
  if (mark != 0) return mark;
  const std::uint64_t made = NewMark();
  return page->compare_exchange_strong(mark, made, std::memory_order_relaxed) ? made : mark;
}

}  // namespace

OwnerProcess::OwnerProcess() noexcept : mark_(MarkOfThisProcess()) {}

bool OwnerProcess::Here() const noexcept { return MarkOfThisProcess() == mark_; }

Error BelongsToParent(const char* what) {
  return MakeError(Errc::kUnsupported, std::string("this ") + what + " belongs to the process that was forked; connect anew");
}

}  // namespace kvm
