// What the host cache wants others to know of its slabs, and what it asks of them.
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
  // Its writer may write it from now on.
  virtual void SlabGranted(Slab& slab) = 0;
  // The slab's region, which then leaves the domain. Importers are told.
  virtual void SlabClosing(Domain& domain, Region& region) = 0;
  virtual void WorkToDo() = 0;
  // Memory of registries that kvmd may still have to make: none of the host cache's.
  virtual std::uint64_t RegistryBytesToCome() const { return 0; }
};

}  // namespace kvm::daemon
