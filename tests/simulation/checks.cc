#include "tests/simulation/checks.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <tuple>
#include <utility>

#include "daemon/host_cache/slab.h"
#include "tests/simulation/content.h"
#include "tests/simulation/pool.h"

namespace kvm::simulation {
namespace {

using daemon::CacheSlot;
using daemon::Domain;
using daemon::Region;

// Of one step of kvmd's: a slice, and the message that begins it
constexpr daemon::WorkUnits kMostWork = 4 * daemon::kSliceUnits;

// Of a domain uid-NUMBER
std::uint32_t UserOf(const Domain& domain) noexcept {
  const std::string& name = domain.name();
  std::uint32_t user = 0;
  std::from_chars(name.data() + 4, name.data() + name.size(), user);
  return user;
}

bool IsZero(const std::byte* block) {
  return std::all_of(block, block + kBlockBytes, [](std::byte byte) { return byte == std::byte{0}; });
}

IndexReader IndexOf(Domain& domain) {
  daemon::RegistrySegment& segment = domain.segment();
  return {segment.slots(), segment.header().index_slots, &segment.header().index_moves, segment.tags()};
}

}  // namespace

void Checks::All() {
  ++world_.counted.checks;
  daemon::Broker* const broker = world_.kvmd.broker();
  if (broker == nullptr) return;
  const Plenty plenty(world_.machine);
  const bool changed = world_.kvmd.TakeChanged();
  broker->domains().ForEach([this, changed](Domain& domain) {
    EntriesAreRight(domain, changed);
    OnlyOwnersWriteGenerations(domain);
    if (!changed) return;
    RowsShowRegions(domain);
    SlotsAndGenerationsAgree(domain);
    DomainsAreApart(domain);
    SumsAreRight(domain);
    MarksAreCounted(domain);
  });
  if (!changed) return;
  LeasesPinWhatTheySay();
  DescriptorsAreCounted();
  WorkIsBounded();
}

void Checks::EntriesAreRight(Domain& domain, bool changed) {
  const std::uint32_t user = UserOf(domain);
  const IndexReader index = IndexOf(domain);
  std::uint64_t entries = 0, of_regions = 0;
  IndexEntry entry;
  for (std::uint64_t slot = 0; slot < index.slots() && entries < domain.entries(); ++slot) {
    if (!index.ReadSlot(slot, entry)) continue;
    ++entries;
    const Region& region = EntryNamesARegion(domain, entry, slot);
    if (!IsHonest(entry.key)) continue;
    ReadableBlockHoldsItsKey(domain, region, entry, user);
    if (changed) KeyIsOfItsModel(region, entry);
  }
  domain.ForEachRegion([&](const Region& region) { of_regions += region.entries; });
  const std::uint64_t extra = world_.defect == Defect::kWrongSum ? 1 : 0;
  if (entries + extra != domain.entries() || of_regions != domain.entries()) world_.Fail("I11: the entries are not as many as is counted");
}

// Each entry names a block of a region that is there, and that block names the entry's slot.
const Region& Checks::EntryNamesARegion(Domain& domain, const IndexEntry& entry, std::uint64_t slot) {
  const Region* region = domain.FindRegion(entry.region, entry.region_epoch);
  if (region == nullptr) world_.Fail("I2: an entry names no region");
  if (entry.block >= region->info.block_count) world_.Fail("I2: an entry names no block");
  if (region->slots.Get(entry.block) != slot) world_.Fail("I2: a block does not know its entry");
  if (!IsReadable(entry.generation)) world_.Fail("I2: an entry has a generation that no reader takes");
  return *region;
}

// An entry whose generation is the block's promises the bytes of its key.
void Checks::ReadableBlockHoldsItsKey(Domain& domain, const Region& region, const IndexEntry& entry, std::uint32_t user) {
  if (!region.generations.StillValid(entry.block, entry.generation)) return;
  const std::byte* const payload = PayloadOf(domain, region);
  if (payload == nullptr || Holds(payload + entry.block * kBlockBytes, user, entry.key)) return;
  world_.Note("entry", NumberOf(entry.key), entry.block, entry.generation);
  world_.Fail("I2, I3: a block is readable under a key whose bytes it does not hold, in " + region.descriptor.name());
}

void Checks::KeyIsOfItsModel(const Region& region, const IndexEntry& entry) const {
  static const std::string fingerprints[2] = {Pool::Describe("", 0).fingerprint(), Pool::Describe("", 1).fingerprint()};
  if (region.descriptor.fingerprint() != fingerprints[NumberOf(entry.key) % 2])
    world_.Fail("I9: a key is found in a region of another model");
}

const std::byte* Checks::PayloadOf(Domain& domain, const Region& region) {
  std::vector<Payload>& payloads = payloads_[UserOf(domain)];
  if (payloads.size() <= region.row) payloads.resize(region.row + 1);
  Payload& payload = payloads[region.row];
  if (payload.registry != domain.epoch() || payload.region_epoch != region.info.region_epoch) {
    payload = {domain.epoch(), region.info.region_epoch, {}};
    if (Result<MappedMemory> memory = MappedMemory::Attach(region.importer_fd(1)); memory) payload.memory = std::move(*memory);
  }
  return payload.memory.size() < region.info.block_count * kBlockBytes ? nullptr : payload.memory.data();
}

// The registry's rows say what kvmd's own table says.
void Checks::RowsShowRegions(Domain& domain) {
  std::uint32_t live = 0, orphans = 0;
  domain.ForEachRegion([&](const Region& region) {
    const layout::RegionInfo& row = region.info;
    live += region.live();
    orphans += region.phase() == daemon::RegionPhase::kOrphan;
    const bool shown = row.state == static_cast<std::uint32_t>(layout::RegionState::kLive) ||
                       row.state == static_cast<std::uint32_t>(layout::RegionState::kOrphan);
    if (shown != region.serving()) world_.Fail("I2: a row shows another state than its region has");
    if (region.orphan.has_value() != (region.phase() == daemon::RegionPhase::kOrphan)) world_.Fail("an orphan is none");
    if (row.region_epoch == 0) world_.Fail("I2: a region has no epoch");
    if (region.account == nullptr) world_.Fail("I11: a region is in no account");
  });
  if (live != domain.live_regions() || orphans != domain.orphans()) world_.Fail("I11: the regions are not as many as is counted");
}

// kvmd writes no owner's generations, and what an owner has ended stays so until the next owner.
void Checks::OnlyOwnersWriteGenerations(Domain& domain) {
  domain.ForEachRegion([&](const Region& region) {
    const auto found = world_.tables.find(region.identity());
    if (region.filler != nullptr || found == world_.tables.end()) return;
    const Table& table = *found->second;
    for (std::uint32_t block = 0; block < table.generations.size(); ++block) {
      if (region.generations.Current(block) != table.generations[block]) world_.Fail("I1: a generation is not as its owner wrote it");
      if (table.ended && !IsEnded(table.generations[block])) world_.Fail("I10: a block can be read after its owner has ended");
    }
  });
}

// A slot is readable exactly while it is stored; a granted one has the odd value of its grant; a
// free one holds zeros (zero-on-free).
void Checks::SlotsAndGenerationsAgree(Domain& domain) {
  domain.ForEachRegion([&](Region& region) {
    if (region.filler == nullptr) return;
    auto& slab = *static_cast<daemon::Slab*>(region.filler);
    if (slab.restoring) return;
    const std::byte* const payload = PayloadOf(domain, region);
    for (std::uint32_t slot = 0; slot < region.info.block_count; ++slot) {
      const CacheSlot& state = slab.group.blocks[slab.group.blocks.SlotAt(slab.position, slot)];
      const Generation generation = region.generations.Current(slot);
      const bool stored = state.state == CacheSlot::State::kStored;
      if (stored != IsReadable(generation)) world_.Fail("host cache: a slot is readable and not stored, or stored and not readable");
      if (stored != (region.slots.Get(slot) != daemon::SlotMap::kNone))
        world_.Fail("host cache: a slot is stored and not in the index, or in it and not stored");
      if (state.state == CacheSlot::State::kFree && payload != nullptr && !IsZero(payload + slot * kBlockBytes))
        world_.Fail("host cache: a free slot holds bytes of the block that has left");
      if (state.state == CacheSlot::State::kGranted && generation != state.write)
        world_.Fail("host cache: a grant is not the slot's generation");
    }
  });
}

// A domain has regions of its own user and of kvmd only.
void Checks::DomainsAreApart(Domain& domain) {
  const std::uint32_t user = UserOf(domain);
  domain.ForEachRegion([&](const Region& region) {
    if (region.filler == nullptr && region.owner != daemon::kNoClient && region.info.owner_uid != user)
      world_.Fail("I5: a domain has another user's region");
  });
}

// Each account is the sum of its regions.
void Checks::SumsAreRight(Domain& domain) {
  std::map<daemon::ClientId, Sums> sums;
  std::uint64_t fds = 0, blocks = 0;
  domain.ForEachRegion([&](const Region& region) {
    Sums& of = sums[region.owner];
    ++of.regions;
    of.blocks += region.info.block_count;
    of.fds += region.descriptors();
    of.entries += region.entries;
    fds += region.descriptors();
    blocks += region.info.block_count;
  });
  for (const auto& [client, sum] : sums) {
    const daemon::Account account = domain.AccountOf(client);
    if (account.regions != sum.regions || account.blocks != sum.blocks || account.fds != sum.fds || account.entries != sum.entries)
      world_.Fail("I11: an account is not the sum of its regions");
  }
  if (fds != domain.fds() || blocks != domain.blocks()) world_.Fail("I11: a domain's sums are not those of its regions");
}

// The rows of marks are as many as is counted, each key has one, and each is of a client that may
// have it.
void Checks::MarksAreCounted(Domain& domain) {
  const layout::RegistryHeader& header = domain.segment().header();
  std::uint64_t used = 0;
  std::set<std::pair<std::uint64_t, std::uint64_t>> keys;
  std::map<daemon::ClientId, std::uint32_t> of_client;
  layout::MarkInfo mark{};
  for (std::uint64_t row = 0; row < header.mark_buckets * layout::kMarksPerBucket && used < domain.marks().size(); ++row) {
    if (!domain.segment().marks()[row].Read(mark) || mark.client_id == 0) continue;
    ++used;
    ++of_client[mark.client_id];
    if (!keys.emplace(mark.key_lo, mark.key_hi).second) world_.Fail("I11: a key has two marks");
  }
  if (used != domain.marks().size() || used != header.live_marks) world_.Fail("I11: the marks are not as many as is counted");
  for (const auto& [client, count] : of_client) {
    if (count != domain.marks().OfClient(client) || count > domain.config().max_marked_keys_per_client)
      world_.Fail("I11: a client has other marks than is counted, or too many");
    if (!world_.kvmd.broker()->Greeted(client)) world_.Fail("I11: a client that has left has marks");
  }
}

// Each block of a lease is pinned, is readable, and stays in the index; nothing else is pinned.
void Checks::LeasesPinWhatTheySay() {
  const daemon::Broker& broker = *world_.kvmd.broker();
  // Leases are still losing blocks of a region that has gone.
  if (broker.lessor().cutting()) return;
  std::set<std::tuple<const Domain*, std::uint32_t, std::uint32_t>> leased;
  std::map<daemon::ClientId, std::pair<std::uint32_t, std::uint64_t>> of_client;
  for (const auto& [id, lease] : broker.lessor().all()) {
    ++of_client[lease->client].first;
    of_client[lease->client].second += lease->blocks.size();
    for (const daemon::LeasedBlock& block : lease->blocks) {
      const Region* region = lease->domain->FindRegion(block.row, block.region_epoch);
      if (region == nullptr || !region->serving()) world_.Fail("a lease covers a block of a region that has gone");
      if (region->live() && region->filler == nullptr) world_.Fail("a lease covers a block that its owner may rewrite");
      if (!region->Pinned(block.block)) world_.Fail("a lease covers a block that may be evicted");
      if (!IsReadable(region->generations.Current(block.block))) world_.Fail("a lease covers a block that no reader takes");
      leased.emplace(lease->domain, block.row, block.block);
    }
  }
  for (const auto& [client, counts] : of_client) {
    const daemon::Lessor::Usage usage = broker.lessor().UsageOf(client);
    // What a lease has lost counts until its blocks are unpinned.
    if (usage.leases < counts.first || usage.blocks < counts.second) world_.Fail("I11: a client has more leases than are counted");
  }
  if (!world_.kvmd.quiet()) return;
  broker.domains().ForEach([&](Domain& domain) {
    domain.ForEachRegion([&](const Region& region) {
      for (std::uint32_t block = 0; region.serving() && block < region.info.block_count; ++block) {
        if (region.Pinned(block) && !leased.contains({&domain, region.row, block})) world_.Fail("a block is pinned that no lease covers");
      }
    });
  });
}

void Checks::DescriptorsAreCounted() {
  const daemon::DomainTable& domains = world_.kvmd.broker()->domains();
  std::uint64_t kept = domains.granted().watched();
  domains.ForEach([&](Domain& domain) { domain.ForEachRegion([&](const Region& region) { kept += region.descriptors(); }); });
  if (kept != domains.descriptors().kept()) {
    world_.Fail("I11: " + std::to_string(domains.descriptors().kept()) + " descriptors are counted, " + std::to_string(kept) + " are kept");
  }
}

void Checks::WorkIsBounded() {
  if (const daemon::WorkUnits most = world_.kvmd.TakeMostWork(); most > kMostWork)
    world_.Fail("I11: one step has cost " + std::to_string(most) + " units of work");
}

void Checks::NothingIsLeft() {
  payloads_.clear();
  const daemon::Broker& broker = *world_.kvmd.broker();
  broker.domains().ForEach([&](Domain& domain) {
    if (domain.clients != 0) world_.Fail("a client is counted that has left");
    domain.ForEachRegion([&](const Region& region) {
      if (region.filler == nullptr) world_.Fail("a region is left: " + region.descriptor.name());
      for (std::uint32_t block = 0; block < region.info.block_count; ++block) {
        if (region.Pinned(block)) world_.Fail("a block is pinned, and no client is left");
      }
    });
    if (const std::uint64_t bytes = broker.domains().granted().BytesOf(UserOf(domain)); bytes != 0)
      world_.Fail(std::to_string(bytes) + " bytes of granted memory are counted, and no process has them");
  });
  if (!broker.lessor().all().empty()) world_.Fail("a lease is left");
}

}  // namespace kvm::simulation
