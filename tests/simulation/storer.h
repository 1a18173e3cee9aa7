// A simulated worker's copies into the host cache: the slabs that it may write, and the grants that
// it copies blocks for, a part at a time.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "proto/shm/sealed_memory.h"
#include "tests/simulation/peers.h"
#include "tests/simulation/pool.h"
#include "tests/simulation/world.h"

namespace kvm::simulation {

class Storer {
 public:
  explicit Storer(World& world) : world_(world) {}

  void Granted(ToClient& slab);
  void Withdrawn(const RegionName& slab) { slabs_.erase(slab); }
  // The answer to an offer of these records.
  void Answered(const kvmwire::PrepareStoreReply& reply, const std::vector<PublishRecord>& offered);
  // A part of one copy.
  void GoOn(const Pool* pool);
  // Reports what is complete; false: nothing is.
  bool Report(kvmwire::CompleteStore& report);
  // The copies of an earlier connection end here, and its slabs are unmapped.
  void EndCopies() {
    stores_.clear();
    slabs_.clear();
  }
  std::size_t under_way() const noexcept { return stores_.size(); }

 private:
  struct Store {
    RegionName slab;
    std::uint32_t slot = 0, words = 0;
    Generation write = 0;
    PublishRecord source;
    bool ended = false, stored = false;
  };

  World& world_;
  std::map<RegionName, OwnedMemory> slabs_;
  std::vector<Store> stores_;
};

}  // namespace kvm::simulation
