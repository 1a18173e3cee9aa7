// MemoryFreerThread: frees memory (daemon/system/memory_freer.h) in a thread of its own. Server
// owns it.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include <boost/asio/thread_pool.hpp>

#include "daemon/system/memory_freer.h"

namespace kvm::daemon {

class MemoryFreerThread final : public MemoryFreer {
 public:
  static constexpr char kName[] = "kvmd-freer";  // of the thread, as top and /proc show it

  MemoryFreerThread();
  // Waits until all is free.
  ~MemoryFreerThread() override { thread_.join(); }
  MemoryFreerThread(const MemoryFreerThread&) = delete;
  MemoryFreerThread& operator=(const MemoryFreerThread&) = delete;

  void Free(OwnedMemory memory) override;
  void Destroy(std::shared_ptr<const void> object, std::size_t bytes) override;
  bool freeing() const noexcept override { return freeing_.load(std::memory_order_acquire) > 0; }

 private:
  std::atomic<std::size_t> freeing_{0};
  boost::asio::thread_pool thread_{1};
};

}  // namespace kvm::daemon
