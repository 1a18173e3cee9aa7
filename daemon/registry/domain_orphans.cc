// Regions without an owner: kept, given to another, listed for it.
#include <algorithm>
#include <cstring>

#include "daemon/registry/domain.h"

namespace kvm::daemon {

std::uint64_t Domain::orphan_bytes() const noexcept {
  std::uint64_t bytes = 0;
  for (const auto& region : regions_) {
    if (region && region->orphan) bytes += region->segment_bytes();
  }
  return bytes;
}

std::uint64_t Domain::blocks() const noexcept {
  std::uint64_t blocks = 0;
  for (const auto& [client, account] : accounts_) blocks += account.blocks;
  return blocks;
}

std::vector<Region*> Domain::Orphans() noexcept {
  std::vector<Region*> out;
  for (const auto& region : regions_) {
    if (region && region->orphan) out.push_back(region.get());
  }
  std::sort(out.begin(), out.end(), [](const Region* a, const Region* b) { return a->orphan->since < b->orphan->since; });
  return out;
}

bool Domain::nearly_full() const noexcept {
  return live_regions_ + orphans_ + leaving_.size() + regions_.size() / 8 + 1 >= regions_.size();
}

void Domain::MakeOrphan(Region& region, Orphan orphan) noexcept {
  region.orphan = std::move(orphan);
  Enter(region, RegionPhase::kOrphan);
}

Status Domain::TakeOver(Region& region, const Owner& owner) {
  if (Status allowed = CheckQuotas(owner.client, region.info.block_count, region.descriptors()); !allowed) return allowed;
  Account& to = accounts_[owner.client];
  to.regions += 1;
  to.blocks += region.info.block_count;
  to.fds += region.descriptors();
  descriptors_.Add(region.descriptors());
  to.entries += region.entries;
  LeaveAccount(region);
  region.account = &to;
  region.owner = owner.client;
  region.announced_to.erase(owner.client);
  region.info.client_id = owner.client;
  region.info.owner_pid = owner.pid;
  Enter(region, RegionPhase::kLive);
  return {};
}

void Domain::LeaveAccount(Region& region) noexcept {
  Account& account = *region.account;
  account.blocks -= region.info.block_count;
  account.fds -= region.descriptors();
  descriptors_.Remove(region.descriptors());
  account.entries -= region.entries;
  if (--account.regions == 0) accounts_.erase(region.owner);
  region.account = nullptr;
}

Result<OwnedMemory> Domain::Records(const Region& region, std::uint64_t& count) const {
  constexpr std::uint32_t kAhead = 16;
  count = 0;
  const std::uint64_t room = std::max<std::uint64_t>(region.entries, 1);
  Result<OwnedMemory> memory = OwnedMemory::Create("kvmd:records", room * sizeof(PublishRecord));
  if (!memory) return memory.error();
  const std::uint32_t blocks = region.info.block_count;
  for (std::uint32_t block = 0; block < blocks && count < room; ++block) {
    if (block + kAhead < blocks) {
      region.generations.Prefetch(block + kAhead);
      index_.PrefetchSlot(region.slots.Get(block + kAhead));
    }
    const std::uint32_t slot = region.slots.Get(block);
    if (slot == SlotMap::kNone) continue;
    const IndexEntry entry = index_.At(slot);
    if (region.generations.Current(block) != entry.generation) continue;
    const PublishRecord record{entry.key, entry.parent_lo, entry.generation, block, entry.depth};
    std::memcpy(memory->data() + count * sizeof(record), &record, sizeof(record));
    ++count;
  }
  return memory;
}

}  // namespace kvm::daemon
