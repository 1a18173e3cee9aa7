#include "tests/simulation/hostile.h"

#include <google/protobuf/stubs/logging.h>

#include <utility>

#include "tests/simulation/content.h"
#include "tests/simulation/pool.h"

namespace kvm::simulation {

void Hostile::Die(bool cut) {
  table_ = OwnedMemory();
  payload_ = OwnedMemory();
  handed_.clear();
  registry_ = RegistryView();
  link_.Die(cut);
}

void Hostile::DoSomething() {
  test::Random& random = world_.random;
  if (link_.Lost()) {
    registry_ = RegistryView();
    link_.Close();
  }
  if (!link_.connected()) {
    if (link_.Connect()) world_.Note("hostile connects", uid_);
    return;
  }
  if (link_.has_mail()) Receive();
  if (random.OneIn(400)) return Die(random.OneIn(2));
  if (random.OneIn(400)) return link_.Close();
  if (random.OneIn(60)) return Register(false);
  if (random.OneIn(100)) return Register(true);
  kvmwire::ClientMessage message = AnyMessage();
  ++world_.counted.lies;
  world_.Note("hostile says", static_cast<std::uint64_t>(message.body_case()), uid_);
  std::vector<int> fds;
  if (random.OneIn(200) && !handed_.empty()) fds.push_back(random.Pick(handed_).get());
  if (random.OneIn(2)) return link_.Send(std::move(message), fds);
  link_.Ask({}, std::move(message), fds);
}

void Hostile::Receive() {
  std::optional<ToClient> received = link_.Take();
  if (!received) return;
  if (received->message.has_hello_reply() && received->fds.size() == 1) {
    Result<MappedMemory> memory = MappedMemory::Attach(received->fds[0].get());
    Result<RegistryView> view = memory ? RegistryView::Open(std::move(*memory)) : Result<RegistryView>(memory.error());
    if (view) registry_ = std::move(*view);
    kvmwire::ClientMessage message;
    message.mutable_declare_model()->set_spec(SpecOf(static_cast<std::uint32_t>(world_.random.Below(2))).Canonical());
    link_.Ask({}, std::move(message));
  }
  world_.counted.evicted += received->message.evict_reply().blocks();
  for (UniqueFd& fd : received->fds) {
    if (handed_.size() < 6 && world_.random.OneIn(4)) handed_.push_back(std::move(fd));
  }
  if (world_.random.OneIn(20)) handed_.clear();
}

void Hostile::Register(bool stolen) {
  kvmwire::ClientMessage message;
  const auto model = static_cast<std::uint32_t>(world_.random.Below(2));
  *message.mutable_register_region()->mutable_region() = Pool::Describe(std::to_string(uid_) + "-hostile", model);
  if (stolen) {
    if (handed_.size() < 2) return;
    return link_.Ask({}, std::move(message), {world_.random.Pick(handed_).get(), world_.random.Pick(handed_).get()});
  }
  Result<OwnedMemory> table = OwnedMemory::Create("hostile", GenerationTableBytes(kPoolBlocks));
  Result<OwnedMemory> payload = OwnedMemory::Create("hostile", kPoolBlocks * kBlockBytes);
  if (!table || !payload) return;
  table_ = std::move(*table);
  payload_ = std::move(*payload);
  GenerationWriter generations = GenerationWriter::Format({table_.data(), table_.size()}, kPoolBlocks);
  for (std::uint32_t block = 0; block < kPoolBlocks; ++block) generations.FinishWrite(block, generations.BeginWrite(block));
  link_.Ask({}, std::move(message), {table_.fd(), payload_.fd()});
}

Hostile::Place Hostile::AnyPlace() {
  test::Random& random = world_.random;
  Place place{static_cast<std::uint32_t>(random.Below(18)), static_cast<std::uint32_t>(random.Below(64)),
              static_cast<std::uint32_t>(random.Below(kPoolBlocks + 4)), random.Below(64)};
  if (!registry_ || random.OneIn(3)) return place;
  IndexEntry entry;
  layout::RegionInfo row{};
  if (registry_.index().ReadSlot(random.Below(registry_.index().slots()), entry)) {
    place = {entry.region, entry.region_epoch, entry.block, entry.generation};
  } else if (registry_.ReadRegion(place.row, row)) {
    place.region_epoch = row.region_epoch;
  }
  if (random.OneIn(5)) place.block = static_cast<std::uint32_t>(random.Next());
  if (random.OneIn(5)) place.generation += random.Below(3);
  return place;
}

std::string Hostile::AnyRecords(const Place& place) {
  std::string out;
  for (std::uint64_t i = world_.random.Below(12); i > 0; --i) {
    const auto number = static_cast<std::uint32_t>(world_.random.Below(kNumbers));
    const PublishRecord record{KeyOf(number, kLie), world_.random.OneIn(2) ? KeyOf(number).lo : world_.random.Next(), place.generation,
                               world_.random.OneIn(2) ? place.block : static_cast<std::uint32_t>(world_.random.Below(kPoolBlocks)),
                               static_cast<std::uint32_t>(world_.random.Below(9))};
    out.append(reinterpret_cast<const char*>(&record), sizeof(record));
  }
  return out;
}

kvmwire::ClientMessage Hostile::AnyMessage() {
  const std::uint64_t kind = world_.random.Below(16);
  if (kind == 15) return Garbage();
  return kind < 8 ? AboutBlocks(kind) : AboutMemory(kind);
}

kvmwire::ClientMessage Hostile::AboutBlocks(std::uint64_t kind) {
  kvmwire::ClientMessage message;
  const Place at = AnyPlace();
  switch (kind) {
    case 0: {
      kvmwire::Publish& publish = *message.mutable_publish();
      publish.set_region(at.row);
      publish.set_region_epoch(at.region_epoch);
      publish.set_records(AnyRecords(at));
      break;
    }
    case 1:
      message.mutable_retract()->set_region(at.row);
      message.mutable_retract()->set_region_epoch(at.region_epoch);
      message.mutable_retract()->add_blocks(at.block);
      break;
    case 2:
    case 3: {
      kvmwire::PrepareStore& offer = *message.mutable_prepare_store();
      offer.set_region(at.row);
      offer.set_region_epoch(at.region_epoch);
      offer.set_records(AnyRecords(at));
      offer.set_grants_lost(kind == 3);
      break;
    }
    case 4: {
      kvmwire::StoreOutcome& outcome = *message.mutable_complete_store()->add_outcomes();
      outcome.set_region(at.row);
      outcome.set_region_epoch(at.region_epoch);
      outcome.set_slot(at.block);
      outcome.set_generation(at.generation | 1);
      outcome.set_stored(world_.random.OneIn(2));
      break;
    }
    case 5: {
      kvmwire::HostCacheRun& run = *message.mutable_host_cache_use()->add_runs();
      run.set_region(at.row);
      run.set_region_epoch(at.region_epoch);
      run.set_slot(at.block);
      run.set_blocks(static_cast<std::uint32_t>(world_.random.Next()));
      break;
    }
    case 6: {
      kvmwire::AcquireLease& acquire = *message.mutable_acquire_lease();
      acquire.set_registry_epoch(registry_ ? registry_.header().epoch : 0);
      acquire.set_ttl_ms(static_cast<std::uint32_t>(world_.random.Between(1, 30'000)));
      if (world_.random.OneIn(3)) acquire.set_lease(world_.random.Below(100));
      for (std::uint64_t i = world_.random.Below(8); i > 0; --i) {
        const Place place = AnyPlace();
        kvmwire::LeaseSource& source = *acquire.add_sources();
        source.set_region(place.row);
        source.set_region_epoch(place.region_epoch);
        source.set_block(place.block);
        source.set_generation(place.generation);
      }
      break;
    }
    default:
      if (world_.random.OneIn(2)) {
        Evict(*message.mutable_evict());
        break;
      }
      message.mutable_withdraw_ack()->set_region(at.row);
      message.mutable_withdraw_ack()->set_region_epoch(at.region_epoch);
      break;
  }
  return message;
}

void Hostile::Mark(kvmwire::MarkComputing& mark) {
  std::vector<BlockKey> keys;
  for (std::uint64_t i = world_.random.Below(20); i > 0; --i)
    keys.push_back(KeyOf(static_cast<std::uint32_t>(world_.random.Below(kNumbers))));
  mark.set_mark(world_.random.Below(4));
  mark.set_ttl_ms(static_cast<std::uint32_t>(world_.random.Next()));
  mark.set_keys(keys.data(), keys.size() * sizeof(BlockKey));
}

void Hostile::Evict(kvmwire::Evict& evict) {
  std::vector<BlockKey> keys;
  if (!world_.random.OneIn(3)) {
    for (std::uint64_t i = world_.random.Below(6); i > 0; --i)
      keys.push_back(KeyOf(static_cast<std::uint32_t>(world_.random.Below(kNumbers))));
  }
  evict.set_keys(keys.data(), keys.size() * sizeof(BlockKey));
}

kvmwire::ClientMessage Hostile::AboutMemory(std::uint64_t kind) {
  kvmwire::ClientMessage message;
  const std::string victim = std::to_string(victim_) + "-" + std::to_string(world_.random.Below(3));
  switch (kind) {
    case 8:
      message.mutable_unregister_region()->set_region(AnyPlace().row);
      message.mutable_unregister_region()->set_region_epoch(AnyPlace().region_epoch);
      break;
    case 9:
      *message.mutable_adopt_region()->mutable_expected() = Pool::Describe(victim, static_cast<std::uint32_t>(world_.random.Below(2)));
      break;
    case 10:
      message.mutable_reclaim()->set_force(world_.random.OneIn(2));
      if (world_.random.OneIn(2)) message.mutable_reclaim()->set_name(victim);
      message.mutable_reclaim()->set_ack_timeout_ms(static_cast<std::uint32_t>(world_.random.Below(100)));
      break;
    case 11:
      for (std::uint64_t i = world_.random.Below(4); i > 0; --i)
        message.mutable_allocate_memory()->add_size_bytes(world_.random.OneIn(4) ? world_.random.Next() : world_.random.Below(8192));
      if (world_.random.OneIn(4)) *message.mutable_allocate_memory()->mutable_for_region() = Pool::Describe(victim, 0);
      break;
    case 12:
      message.mutable_renew_lease()->set_lease(world_.random.Below(200));
      message.mutable_renew_lease()->set_ttl_ms(static_cast<std::uint32_t>(world_.random.Next()));
      break;
    case 13:
      if (world_.random.OneIn(2)) {
        message.mutable_release_lease()->set_lease(world_.random.Below(200));
        break;
      }
      Mark(*message.mutable_mark_computing());
      break;
    default: message.mutable_status_query()->set_leases(true); break;
  }
  return message;
}

kvmwire::ClientMessage Hostile::Garbage() {
  const google::protobuf::LogSilencer quiet;
  kvmwire::ClientMessage message;
  std::string bytes;
  for (std::uint64_t i = world_.random.Below(40); i > 0; --i) bytes.push_back(static_cast<char>(world_.random.Next()));
  if (!message.ParseFromString(bytes)) message.mutable_ping();
  return message;
}

}  // namespace kvm::simulation
