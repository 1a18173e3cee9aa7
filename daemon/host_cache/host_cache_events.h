// HostCacheEvents: what the host cache reports of its slabs to the rest of kvmd, and what it asks.
//
// Implemented by daemon/broker/, which announces slabs to importers, sends writers their
// descriptors and has slabs persisted. Called from inside of calls to HostCache: an implementation
// may ask the cache (Describe, SlabsOf) but not change it.
#pragma once

#include <cstdint>

namespace kvm::daemon {

class Domain;
class Slab;
struct Region;

class HostCacheEvents {
 public:
  virtual ~HostCacheEvents() = default;
  virtual void SlabOpened(Slab& slab) = 0;
  // The slab's writer may write it from now on.
  virtual void SlabGranted(Slab& slab) = 0;
  // Called before the slab's region leaves the domain, so that importers are told.
  virtual void SlabClosing(Domain& domain, Region& region) = 0;
  virtual void WorkToDo() = 0;
  // The memory that registries which kvmd may still create will need, and that the host cache must
  // leave free.
  virtual std::uint64_t RegistryBytesToCome() const { return 0; }
  // The memory of closed slabs that processes of this user may still write.
  virtual std::uint64_t ClosedSlabBytesOf(std::uint32_t uid) const {
    static_cast<void>(uid);
    return 0;
  }
};

}  // namespace kvm::daemon
