// The invariants of kvmd that can be seen from within its process (docs/ARCHITECTURE.md, I1 to
// I12), each by a check with a name. A check that fails throws Violation.
//
// Checks compares what kvmd's parts say of the same thing, and the memory that they speak of. It
// changes nothing. Where work is left to do (kvmd drops entries and ends leases in slices), it
// demands what must hold meanwhile, and the rest once nothing is left.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "daemon/broker/broker.h"
#include "tests/simulation/world.h"

namespace kvm::simulation {

class Checks {
 public:
  explicit Checks(World& world) : world_(world) {}

  // Those that look at what kvmd's parts say are left out if kvmd has done nothing since the last
  // time; the memory is looked at always.
  void All();
  // When no client is left, and kvmd has had time to notice: nothing is kept for them.
  void NothingIsLeft();

 private:
  struct Payload {
    std::uint64_t registry = 0;
    std::uint32_t region_epoch = 0;
    MappedMemory memory;
  };
  struct Sums {
    std::uint64_t regions = 0, blocks = 0, fds = 0, entries = 0;
  };

  void EntriesAreRight(daemon::Domain& domain, bool changed);
  // I2
  const daemon::Region& EntryNamesARegion(daemon::Domain& domain, const IndexEntry& entry, std::uint64_t slot);
  void ReadableBlockHoldsItsKey(daemon::Domain& domain, const daemon::Region& region, const IndexEntry& entry,
                                std::uint32_t user);                                  // I2, I3
  void KeyIsOfItsModel(const daemon::Region& region, const IndexEntry& entry) const;  // I9
  void RowsShowRegions(daemon::Domain& domain);                                       // I2
  void OnlyOwnersWriteGenerations(daemon::Domain& domain);                            // I1, I10
  void SlotsAndGenerationsAgree(daemon::Domain& domain);                              // host cache
  void DomainsAreApart(daemon::Domain& domain);                                       // I5
  void SumsAreRight(daemon::Domain& domain);                                          // I11
  void MarksAreCounted(daemon::Domain& domain);                                       // I11
  void LeasesPinWhatTheySay();
  void DescriptorsAreCounted();  // I11
  void WorkIsBounded();          // I11
  const std::byte* PayloadOf(daemon::Domain& domain, const daemon::Region& region);

  World& world_;
  // By the domain's user and by row
  std::map<std::uint32_t, std::vector<Payload>> payloads_;
};

}  // namespace kvm::simulation
