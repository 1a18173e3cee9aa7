// MemoryFreer: gives memory back to the machine.
//
// The kernel frees a file's memory all at once, with its last mapping and descriptor; a sealed file
// can't be freed in parts. For the registry of a large domain that takes as long as clearing it
// half took; a table of many blocks takes milliseconds. kvmd's thread must not wait for them:
// daemon/server/memory_freer_thread.h frees in a thread of its own. FreeNow frees in the calling
// thread, for a broker without a server.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "daemon/system/work_meter.h"
#include "proto/shm/sealed_memory.h"

namespace kvm::daemon {

class MemoryFreer {
 public:
  virtual ~MemoryFreer() = default;
  // Nothing in kvmd uses the memory any more.
  virtual void Free(OwnedMemory memory) = 0;
  // Destroys an object that nothing in kvmd uses any more, and whose destruction touches nothing
  // else of kvmd's. `bytes`: about what it takes.
  virtual void Destroy(std::shared_ptr<const void> object, std::size_t bytes) = 0;
  // Whether there is memory that is not free yet.
  virtual bool freeing() const noexcept = 0;
};

class FreeNow final : public MemoryFreer {
 public:
  void Free(OwnedMemory memory) override { Spend(memory.size() / kFreedBytesPerUnit); }
  void Destroy(std::shared_ptr<const void> object, std::size_t bytes) override {
    Spend(bytes / kFreedBytesPerUnit);
    object.reset();
  }
  bool freeing() const noexcept override { return false; }

 private:
  static constexpr std::size_t kFreedBytesPerUnit = 1024;
};

}  // namespace kvm::daemon
