#include "daemon/domain.h"

#include <algorithm>
#include <cstring>

#include "proto/protocol_limits.h"

namespace kvm::daemon {
namespace {

Error Exhausted(const std::string& what, std::uint64_t limit, const char* option) {
  return MakeError(Errc::kResourceExhausted, what + ": the limit is " + std::to_string(limit) + " (" + option + ")");
}

template <class T>
std::uint32_t FreeRow(const std::vector<std::unique_ptr<T>>& rows) {
  return static_cast<std::uint32_t>(std::find(rows.begin(), rows.end(), nullptr) - rows.begin());
}

}  // namespace

Result<std::unique_ptr<Domain>> Domain::Create(const std::string& name, const Config& config) {
  Result<RegistrySegment> segment = RegistrySegment::Create(name, {config.max_entries, config.max_regions, config.max_models});
  if (!segment) return segment.error();
  return std::unique_ptr<Domain>(new Domain(name, config, std::move(*segment)));
}

Domain::Domain(std::string name, const Config& config, RegistrySegment segment)
    : name_(std::move(name)),
      config_(config),
      segment_(std::move(segment)),
      index_(segment_.slots(), segment_.tags(), segment_.header().index_slots, config.max_entries, &segment_.header().index_moves,
             [this](const IndexEntry& entry, std::uint64_t slot) {
               regions_[entry.region]->slot_of_block[entry.block] = static_cast<std::uint32_t>(slot);
             }),
      models_(config.max_models),
      regions_(config.max_regions) {}

std::uint32_t Domain::live_regions() const noexcept {
  return static_cast<std::uint32_t>(
      std::count_if(regions_.begin(), regions_.end(), [](const auto& region) { return region && region->live(); }));
}

std::uint32_t Domain::live_models() const noexcept {
  return static_cast<std::uint32_t>(std::count_if(models_.begin(), models_.end(), [](const auto& model) { return model != nullptr; }));
}

// ---- models -------------------------------------------------------------------------------------

Result<std::uint32_t> Domain::DeclareModel(ClientId client, const ModelSpec& spec) {
  if (Status valid = spec.Validate(); !valid) return valid.error();
  const Fingerprint fingerprint = spec.ComputeFingerprint();
  for (std::uint32_t row = 0; row < models_.size(); ++row) {
    if (!models_[row] || models_[row]->fingerprint != fingerprint) continue;
    models_[row]->declared_by.insert(client);
    return row;
  }
  const std::uint32_t row = FreeRow(models_);
  if (row == models_.size()) return Exhausted("model table is full", config_.max_models, "--max-models");
  models_[row] = std::make_unique<Model>(Model{spec, fingerprint, {client}});
  WriteModelRow(row);
  return row;
}

void Domain::WriteModelRow(std::uint32_t row) noexcept {
  layout::ModelInfo info{};
  if (const Model* model = models_[row].get()) {
    const std::string canonical = model->spec.Canonical();
    info.state = 1;
    info.fingerprint = model->fingerprint;
    info.spec_bytes = static_cast<std::uint32_t>(std::min(canonical.size(), sizeof(info.spec)));
    std::memcpy(info.spec, canonical.data(), info.spec_bytes);
  }
  segment_.models()[row].Write(info);
  segment_.header().live_models.store(live_models(), std::memory_order_relaxed);
}

bool Domain::HasDeclared(ClientId client, std::uint32_t model) const noexcept {
  return model < models_.size() && models_[model] && models_[model]->declared_by.contains(client);
}

void Domain::ForgetClient(ClientId client) noexcept {
  for (std::uint32_t row = 0; row < models_.size(); ++row) {
    if (!models_[row] || models_[row]->declared_by.erase(client) == 0 || !models_[row]->declared_by.empty()) continue;
    models_[row].reset();
    WriteModelRow(row);
  }
}

// ---- regions ------------------------------------------------------------------------------------

std::uint64_t Domain::BlocksOf(ClientId client) const noexcept {
  std::uint64_t blocks = 0;
  for (const auto& region : regions_) {
    if (region && region->owner == client) blocks += region->info.block_count;
  }
  return blocks;
}

Result<Region*> Domain::RegisterRegion(const Owner& owner, kvmwire::RegionDescriptor descriptor, std::vector<UniqueFd> fds) {
  const auto named = [&](const auto& model) {
    return model && model->fingerprint.bytes.size() == descriptor.fingerprint().size() &&
           std::memcmp(model->fingerprint.bytes.data(), descriptor.fingerprint().data(), descriptor.fingerprint().size()) == 0;
  };
  const auto model = std::find_if(models_.begin(), models_.end(), named);
  if (model == models_.end()) return MakeError(Errc::kNotFound, "region: its model has not been declared");
  std::uint32_t owned = 0;
  std::uint64_t owned_fds = fds.size();
  for (const auto& other : regions_) {
    if (!other || other->owner != owner.client) continue;
    ++owned;
    owned_fds += other->fds.size();
  }
  if (owned >= config_.max_regions_per_client)
    return Exhausted("too many regions of one client", config_.max_regions_per_client, "--max-regions-per-client");
  if (owned_fds > config_.max_fds_per_client)
    return Exhausted("too many descriptors of one client", config_.max_fds_per_client, "--max-fds-per-client");
  if (BlocksOf(owner.client) + descriptor.block_count() > config_.max_blocks_per_client) {
    return Exhausted("too many blocks of one client", config_.max_blocks_per_client, "--max-blocks-per-client");
  }
  const std::uint32_t row = FreeRow(regions_);
  if (row == regions_.size()) return Exhausted("region table is full", config_.max_regions, "--max-regions");

  Result<std::unique_ptr<Region>> checked = CheckRegion(std::move(descriptor), std::move(fds), (*model)->spec);
  if (!checked) return checked.error();
  Region& region = **checked;
  region.info.model = static_cast<std::uint32_t>(model - models_.begin());
  for (const auto& other : regions_) {
    if (!other || !other->live()) continue;
    if (other->info.owner_uid == owner.uid && other->descriptor.name() == region.descriptor.name()) {
      return MakeError(Errc::kAlreadyExists,
                       "region: the name " + region.descriptor.name() + " is in use by process " + std::to_string(other->info.owner_pid));
    }
    const bool same_shard =
        other->info.model == region.info.model && std::equal(region.descriptor.shard().begin(), region.descriptor.shard().end(),
                                                             other->descriptor.shard().begin(), other->descriptor.shard().end());
    if (same_shard && other->info.block_bytes != region.info.block_bytes) {
      return MakeError(Errc::kBadGeometry, "region: blocks of " + std::to_string(region.info.block_bytes) + " bytes, but " +
                                               other->descriptor.name() + " of the same model and shard has blocks of " +
                                               std::to_string(other->info.block_bytes));
    }
  }
  region.row = row;
  region.owner = owner.client;
  region.info.state = static_cast<std::uint32_t>(layout::RegionState::kLive);
  region.info.region_epoch = next_region_epoch_++;
  region.info.client_id = owner.client;
  region.info.owner_pid = owner.pid;
  region.info.owner_uid = owner.uid;
  region.info.registered_ms = RealtimeMs();
  regions_[row] = std::move(*checked);
  WriteRow(region);
  return &region;
}

void Domain::WriteRow(Region& region) noexcept {
  region.info.live_entries = region.entries;
  segment_.regions()[region.row].Write(region.info);
  segment_.header().live_regions.store(live_regions(), std::memory_order_relaxed);
  Add(segment_.header().region_changes);
}

void Domain::WriteRows() {
  for (const auto& region : regions_) {
    if (region && region->info.live_entries != region->entries) WriteRow(*region);
  }
}

Region* Domain::FindRegion(std::uint32_t row, std::uint32_t region_epoch) noexcept {
  return row < regions_.size() && regions_[row] && regions_[row]->info.region_epoch == region_epoch ? regions_[row].get() : nullptr;
}

std::vector<Region*> Domain::RegionsOf(ClientId owner) noexcept {
  std::vector<Region*> out;
  for (const auto& region : regions_) {
    if (region && region->owner == owner) out.push_back(region.get());
  }
  return out;
}

std::vector<Region*> Domain::LiveRegionsOfModel(std::uint32_t model) noexcept {
  std::vector<Region*> out;
  for (const auto& region : regions_) {
    if (region && region->live() && region->info.model == model) out.push_back(region.get());
  }
  return out;
}

void Domain::StartLeaving(Region& region) noexcept {
  region.info.state = static_cast<std::uint32_t>(layout::RegionState::kWithdrawing);
  WriteRow(region);
  leaving_.insert(region.row);
}

bool Domain::Reap(std::uint32_t budget) {
  while (!leaving_.empty() && budget > 0) {
    const std::uint32_t row = *leaving_.begin();
    Region& region = *regions_[row];
    for (; region.reap_from < region.slot_of_block.size() && region.entries > 0 && budget > 0; ++region.reap_from, --budget) {
      const std::uint32_t slot = region.slot_of_block[region.reap_from];
      if (slot != Region::kNone) EraseEntry(slot, segment_.counters().reaped);
    }
    if (region.entries > 0) break;
    leaving_.erase(row);
    if (!region.waiting_for.empty()) continue;
    region.info = layout::RegionInfo{};
    region.entries = 0;
    WriteRow(region);
    regions_[row].reset();
  }
  return !leaving_.empty();
}

// ---- entries ------------------------------------------------------------------------------------

bool Domain::IsStale(const IndexEntry& entry) const noexcept {
  const Region& region = *regions_[entry.region];
  return !region.live() || region.generations.Current(entry.block) != entry.generation;
}

void Domain::EraseEntry(std::uint64_t slot, std::atomic<std::uint64_t>& counter) noexcept {
  const IndexEntry entry = index_.At(slot);
  Region& region = *regions_[entry.region];
  region.slot_of_block[entry.block] = Region::kNone;
  --region.entries;
  index_.Erase(slot);
  Add(counter);
}

kvmwire::PublishAck Domain::Publish(ClientId client, const kvmwire::Publish& publish) {
  kvmwire::PublishAck ack;
  ack.set_sequence(publish.sequence());
  const std::size_t count = publish.records().size() / sizeof(PublishRecord);
  Region* region = FindRegion(publish.region(), publish.region_epoch());
  if (region == nullptr || region->owner != client || !region->live()) {
    ack.set_refused_invalid(static_cast<std::uint32_t>(count));
    return ack;
  }
  const auto record_at = [&](std::size_t i) {
    PublishRecord record;
    std::memcpy(&record, publish.records().data() + i * sizeof(record), sizeof(record));
    return record;
  };
  constexpr std::size_t kAhead = 16;
  const auto prefetch = [&](std::size_t i) {
    const PublishRecord record = record_at(i);
    index_.Prefetch(record.key);
    region->generations.Prefetch(record.block);
    if (record.block < region->slot_of_block.size()) __builtin_prefetch(&region->slot_of_block[record.block], 1);
  };
  for (std::size_t i = 0; i < std::min(kAhead, count); ++i) prefetch(i);
  const auto now_s = static_cast<std::uint32_t>((MonotonicNs() - started_ns_) / 1'000'000'000);
  std::uint32_t outcomes[5] = {};
  for (std::size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) prefetch(i + kAhead);
    ++outcomes[static_cast<int>(PublishOne(*region, record_at(i), now_s))];
  }
  ack.set_inserted(outcomes[static_cast<int>(Outcome::kInserted)]);
  ack.set_refused_full(outcomes[static_cast<int>(Outcome::kFull)]);
  ack.set_refused_replicas(outcomes[static_cast<int>(Outcome::kReplicas)]);
  ack.set_refused_stale(outcomes[static_cast<int>(Outcome::kStale)]);
  ack.set_refused_invalid(outcomes[static_cast<int>(Outcome::kInvalid)]);
  layout::Counters& counters = segment_.counters();
  Add(counters.published, ack.inserted());
  Add(counters.refused_full, ack.refused_full());
  Add(counters.refused_replicas, ack.refused_replicas());
  Add(counters.refused_stale, ack.refused_stale());
  segment_.header().live_entries.store(index_.entries(), std::memory_order_relaxed);
  return ack;
}

Domain::Outcome Domain::PublishOne(Region& region, const PublishRecord& record, std::uint32_t now_s) {
  if (record.block >= region.info.block_count || !IsReadable(record.generation)) return Outcome::kInvalid;
  if (region.generations.Current(record.block) != record.generation) return Outcome::kStale;
  IndexEntry entry;
  entry.key = record.key;
  entry.generation = record.generation;
  entry.parent_lo = record.parent_lo;
  entry.region = region.row;
  entry.region_epoch = region.info.region_epoch;
  entry.block = record.block;
  entry.depth = record.depth;
  entry.published_s = now_s;
  if (const std::uint32_t old = region.slot_of_block[record.block]; old != Region::kNone) {
    if (index_.At(old).key == record.key) {
      index_.Update(old, entry);
      return Outcome::kInserted;
    }
    EraseEntry(old, segment_.counters().replaced);
  }
  std::uint64_t slots[layout::kMaxReplicas];
  std::size_t replicas = index_.Replicas(record.key, slots);
  if (replicas >= config_.max_replicas && !DropStaleReplica(record.key, replicas)) return Outcome::kReplicas;
  if (index_.full() && !MakeRoom(region)) return Outcome::kFull;
  region.slot_of_block[record.block] = static_cast<std::uint32_t>(index_.Insert(entry));
  ++region.entries;
  return Outcome::kInserted;
}

bool Domain::DropStaleReplica(const BlockKey& key, std::size_t& replicas) {
  std::uint64_t slots[layout::kMaxReplicas];
  replicas = index_.Replicas(key, slots);
  for (std::size_t i = 0; i < replicas; ++i) {
    if (!IsStale(index_.At(slots[i]))) continue;
    EraseEntry(slots[i], segment_.counters().swept);
    --replicas;
    return true;
  }
  return false;
}

// Looks at a bounded number of entries from where the last search ended: takes the first stale one,
// else the oldest, preferring the publisher's own once it has more than its share.
bool Domain::MakeRoom(const Region& publisher) {
  constexpr int kLookAt = 64;
  constexpr int kMaxSlots = 4096;
  const std::uint64_t share = config_.max_entries / std::max<std::uint64_t>(1, live_regions());
  const bool over_share = publisher.entries > share;
  std::uint64_t best = kNoSlot;
  bool best_own = false;
  std::uint32_t best_time = 0;
  for (int seen = 0, looked = 0; seen < kLookAt && looked < kMaxSlots; ++looked) {
    const std::uint64_t slot = evict_hand_;
    evict_hand_ = evict_hand_ + 1 == index_.slots() ? 0 : evict_hand_ + 1;
    const IndexEntry entry = index_.At(slot);
    if (entry.region_epoch == 0) continue;
    ++seen;
    if (IsStale(entry)) {
      EraseEntry(slot, segment_.counters().swept);
      return true;
    }
    const bool own = over_share && entry.region == publisher.row;
    if (best == kNoSlot || (own && !best_own) || (own == best_own && entry.published_s < best_time)) {
      best = slot;
      best_own = own;
      best_time = entry.published_s;
    }
  }
  if (best == kNoSlot) return false;
  EraseEntry(best, segment_.counters().evicted);
  return true;
}

void Domain::Retract(ClientId client, const kvmwire::Retract& retract) {
  Region* region = FindRegion(retract.region(), retract.region_epoch());
  if (region == nullptr || region->owner != client) return;
  for (const std::uint32_t block : retract.blocks()) {
    if (block >= region->slot_of_block.size()) continue;
    const std::uint32_t slot = region->slot_of_block[block];
    if (slot != Region::kNone && IsStale(index_.At(slot))) EraseEntry(slot, segment_.counters().retracted);
  }
  segment_.header().live_entries.store(index_.entries(), std::memory_order_relaxed);
}

void Domain::Sweep(std::uint32_t slots) {
  for (std::uint64_t looked = 0; looked < std::min<std::uint64_t>(slots, index_.slots()); ++looked) {
    const IndexEntry entry = index_.At(sweep_hand_);
    if (entry.region_epoch != 0 && IsStale(entry)) {
      // A later entry may have moved into the slot: look at it again.
      EraseEntry(sweep_hand_, segment_.counters().swept);
      continue;
    }
    sweep_hand_ = sweep_hand_ + 1 == index_.slots() ? 0 : sweep_hand_ + 1;
  }
  segment_.header().live_entries.store(index_.entries(), std::memory_order_relaxed);
}

}  // namespace kvm::daemon
