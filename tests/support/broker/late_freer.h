// A freer of memory that keeps what it gets until the test clears it.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "daemon/system/memory_freer.h"

namespace kvm::test {

struct LateFreer final : daemon::MemoryFreer {
  void Free(OwnedMemory memory) override { kept.push_back(std::move(memory)); }
  void Destroy(std::shared_ptr<const void> object, std::size_t bytes) override {
    objects.push_back(std::move(object));
    object_bytes += bytes;
  }
  bool freeing() const noexcept override { return !kept.empty(); }
  std::vector<OwnedMemory> kept;
  std::vector<std::shared_ptr<const void>> objects;
  std::size_t object_bytes = 0;
};

}  // namespace kvm::test
