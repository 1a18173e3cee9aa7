#include "tests/simulation/storer.h"

#include <algorithm>
#include <cstring>

namespace kvm::simulation {

void Storer::Granted(ToClient& slab) {
  const kvmwire::SlabGrant& grant = slab.message.slab_grant();
  if (slab.fds.size() != 1 || !slab.fds[0]) return;
  Result<OwnedMemory> memory = OwnedMemory::Take(std::move(slab.fds[0]), grant.size_bytes());
  if (memory) slabs_[{grant.region(), grant.region_epoch()}] = std::move(*memory);
}

void Storer::Answered(const kvmwire::PrepareStoreReply& reply, const std::vector<PublishRecord>& offered) {
  for (const kvmwire::StoreGrant& grant : reply.grants()) {
    if (grant.record() >= offered.size()) world_.Fail("a grant names no record");
    Store store;
    store.slab = {grant.region(), grant.region_epoch()};
    store.slot = grant.slot();
    store.write = grant.generation();
    store.source = offered[grant.record()];
    stores_.push_back(store);
  }
}

void Storer::GoOn(const Pool* pool) {
  if (stores_.empty()) return;
  Store& store = stores_[world_.random.Below(stores_.size())];
  if (store.ended) return;
  const auto slab = slabs_.find(store.slab);
  if (slab == slabs_.end() || pool == nullptr || !pool->generations.StillValid(store.source.block, store.source.generation)) {
    store.ended = true;
    return;
  }
  constexpr std::uint32_t kPart = kWords / 2;
  std::memcpy(slab->second.data() + store.slot * kBlockBytes + store.words * sizeof(std::uint64_t),
              pool->At(store.source.block) + store.words * sizeof(std::uint64_t), kPart * sizeof(std::uint64_t));
  store.words += kPart;
  if (world_.defect == Defect::kStoreReportedTooEarly) store.ended = store.stored = true;
  if (store.words < kWords) return;
  store.ended = true;
  store.stored = pool->generations.StillValid(store.source.block, store.source.generation);
}

bool Storer::Report(kvmwire::CompleteStore& report) {
  std::erase_if(stores_, [&](const Store& store) {
    if (!store.ended) return false;
    kvmwire::StoreOutcome& outcome = *report.add_outcomes();
    outcome.set_region(store.slab.first);
    outcome.set_region_epoch(store.slab.second);
    outcome.set_slot(store.slot);
    outcome.set_generation(store.write);
    outcome.set_stored(store.stored);
    world_.counted.stores += store.stored;
    return true;
  });
  return report.outcomes_size() > 0;
}

}  // namespace kvm::simulation
