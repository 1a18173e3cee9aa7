// AllocationTable: allocations of this process by address, each with the object that keeps it
// alive. It uses no CUDA.
//
// An owner that is removed from the table lives as long as its last user. Thread-safe; owners are
// destroyed outside the lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "kvm/device.h"
#include "kvm/error.h"
#include "proto/base/thread_safety.h"

namespace kvm {

template <class Owner>
class AllocationTable {
 public:
  struct Place {
    std::shared_ptr<Owner> owner;
    std::uint64_t offset = 0;  // of the range, from the allocation's base
  };

  // Precondition: it overlaps no allocation in the table.
  void Add(void* base, std::uint64_t bytes, std::shared_ptr<Owner> owner) {
    MutexLock lock(mutex_);
    entries_[Address(base)] = {bytes, std::move(owner)};
  }

  // Removes and returns the allocation that begins at `base`; null if there is none.
  std::shared_ptr<Owner> Take(const void* base) {
    MutexLock lock(mutex_);
    const auto found = entries_.find(Address(base));
    if (found == entries_.end()) return nullptr;
    std::shared_ptr<Owner> owner = std::move(found->second.owner);
    entries_.erase(found);
    return owner;
  }

  // The allocation in which `range` begins; empty if there is none. kInvalidArgument: the range
  // ends behind the allocation.
  [[nodiscard]] Result<std::optional<Place>> Find(const DeviceRange& range) const {
    MutexLock lock(mutex_);
    auto next = entries_.upper_bound(Address(range.data));
    if (next == entries_.begin()) return std::optional<Place>();
    const auto& [base, entry] = *--next;
    const std::uint64_t offset = Address(range.data) - base;
    if (offset >= entry.bytes) return std::optional<Place>();
    if (range.size_bytes == 0 || range.size_bytes > entry.bytes - offset) {
      return MakeError(Errc::kInvalidArgument, std::to_string(range.size_bytes) + " bytes at offset " + std::to_string(offset) +
                                                   " leave their allocation of " + std::to_string(entry.bytes));
    }
    return std::optional<Place>(Place{entry.owner, offset});
  }

  std::size_t size() const {
    MutexLock lock(mutex_);
    return entries_.size();
  }
  std::uint64_t bytes() const {
    MutexLock lock(mutex_);
    std::uint64_t sum = 0;
    for (const auto& [base, entry] : entries_) sum += entry.bytes;
    return sum;
  }

 private:
  struct Entry {
    std::uint64_t bytes = 0;
    std::shared_ptr<Owner> owner;
  };
  static std::uintptr_t Address(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

  mutable Mutex mutex_;
  std::map<std::uintptr_t, Entry> entries_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
