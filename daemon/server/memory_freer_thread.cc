#include "daemon/server/memory_freer_thread.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <utility>

#include <boost/asio/post.hpp>

namespace kvm::daemon {
namespace {

// The kernel lets no other thread of this process map or unmap anything while it empties a mapping.
constexpr std::size_t kUnmappedAtOnce = std::size_t{16} << 20;

void Empty(const OwnedMemory& memory) noexcept {
  for (std::size_t at = 0; at < memory.size(); at += kUnmappedAtOnce) {
    ::madvise(memory.data() + at, std::min(kUnmappedAtOnce, memory.size() - at), MADV_DONTNEED);
  }
}

}  // namespace

MemoryFreerThread::MemoryFreerThread() {
  boost::asio::post(thread_, [] { ::pthread_setname_np(::pthread_self(), kName); });
}

void MemoryFreerThread::Free(OwnedMemory memory) {
  const auto kept = std::make_shared<OwnedMemory>(std::move(memory));
  freeing_.fetch_add(1, std::memory_order_relaxed);
  boost::asio::post(thread_, [this, kept] {
    Empty(*kept);
    *kept = OwnedMemory();
    freeing_.fetch_sub(1, std::memory_order_release);
  });
}

void MemoryFreerThread::Destroy(std::shared_ptr<const void> object, std::size_t /*bytes*/) {
  freeing_.fetch_add(1, std::memory_order_relaxed);
  boost::asio::post(thread_, [this, object = std::move(object)]() mutable {
    object.reset();
    freeing_.fetch_sub(1, std::memory_order_release);
  });
}

}  // namespace kvm::daemon
