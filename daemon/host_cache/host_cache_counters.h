// What the host cache has done for each domain since kvmd started, for kvctl and metrics.
//
// Owned by HostCache; counted by it, by SlabPool (evicted) and by SlabWriters (expired). Numbers
// only grow until a domain is forgotten. Single-threaded.
#pragma once

#include <cstdint>
#include <map>

namespace kvm::daemon {

class Domain;

class HostCacheCounters {
 public:
  struct Counters {
    std::uint64_t hits = 0, stored = 0, evicted = 0, refused = 0, expired = 0;
  };

  Counters& operator[](const Domain& domain) { return counters_[&domain]; }
  // Zeros if nothing has been counted.
  Counters Of(const Domain& domain) const {
    const auto found = counters_.find(&domain);
    return found == counters_.end() ? Counters{} : found->second;
  }
  void Forget(const Domain& domain) { counters_.erase(&domain); }

 private:
  std::map<const Domain*, Counters> counters_;
};

}  // namespace kvm::daemon
