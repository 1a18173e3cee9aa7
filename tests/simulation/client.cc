#include "tests/simulation/client.h"

#include <fcntl.h>

#include <algorithm>
#include <utility>

namespace kvm::simulation {

SimClient::SimClient(World& world, std::uint32_t uid, std::uint32_t number)
    : world_(world),
      uid_(uid),
      name_(std::to_string(uid) + "-" + std::to_string(number)),
      model_(number % 2),
      link_(world, uid, name_),
      storer_(world) {}

// ---- faults -------------------------------------------------------------------------------------

void SimClient::LostConnection() {
  link_.Close();
  greeted_ = asked_for_pool_ = offering_ = false;
  copies_are_old_ = true;
  leases_.clear();
  unpublished_.clear();
  used_.Clear();
  if (pool_ != nullptr) pool_->registered = pool_->asked = false;
}

void SimClient::Cut() {
  if (!link_.connected()) return;
  world_.Note("connection cut", link_.pid());
  LostConnection();
}

void SimClient::Die(bool cut) {
  world_.Note("process dies", link_.pid(), cut);
  ++world_.counted.deaths;
  if (world_.defect == Defect::kDescriptorLeft && pool_ != nullptr)
    world_.left.emplace_back(::fcntl(pool_->payload.fd(), F_DUPFD_CLOEXEC, 0));
  pool_.reset();
  storer_.EndCopies();
  link_.Die(cut);
  LostConnection();
  now_.reset();
  before_.reset();
}

void SimClient::Exit() {
  if (pool_ != nullptr) Unregister();
  Die(false);
}

// The generations first, in any case.
void SimClient::EndPool() {
  pool_->EndAll();
  pool_.reset();
  unpublished_.clear();
}

// ---- messages -----------------------------------------------------------------------------------

void SimClient::Greeted(ToClient& answer) {
  if (answer.message.has_error() || answer.fds.size() != 1) return LostConnection();
  Result<MappedMemory> memory = MappedMemory::Attach(answer.fds[0].get());
  Result<RegistryView> view = memory ? RegistryView::Open(std::move(*memory)) : Result<RegistryView>(memory.error());
  if (!view) world_.Fail("the registry can't be read: " + view.error().ToString());
  before_ = std::move(now_);
  now_ = std::make_unique<Peers>(world_, uid_, std::move(*view));
  greeted_ = true;
  for (std::uint32_t model = 0; model < 2; ++model) {
    kvmwire::ClientMessage message;
    message.mutable_declare_model()->set_spec(SpecOf(model).Canonical());
    link_.Ask({Asked::What::kModel}, std::move(message));
  }
}

void SimClient::Receive(const std::vector<SimClient*>& all) {
  std::optional<ToClient> received = link_.Take();
  if (!received) return;
  const kvmwire::ServerMessage& message = received->message;
  if (const std::optional<Asked> asked = link_.TakeAsked(message)) return Answered(*asked, *received, all);
  if (message.has_region_announce() && greeted_) now_->Announced(*received);
  if (message.has_slab_grant()) storer_.Granted(*received);
  if (message.has_lease_shrunk() && message.lease_shrunk().blocks() == 0) std::erase(leases_, message.lease_shrunk().lease());
  if (message.has_region_withdraw() && greeted_) {
    const RegionName region{message.region_withdraw().region(), message.region_withdraw().region_epoch()};
    const bool wants_ack = message.region_withdraw().wants_ack();
    storer_.Withdrawn(region);
    if (now_->Withdrawn(region, wants_ack) && wants_ack) {
      kvmwire::ClientMessage ack;
      ack.mutable_withdraw_ack()->set_region(region.first);
      ack.mutable_withdraw_ack()->set_region_epoch(region.second);
      link_.Send(std::move(ack));
    }
  }
}

void SimClient::Answered(const Asked& asked, ToClient& answer, const std::vector<SimClient*>& all) {
  const kvmwire::ServerMessage& message = answer.message;
  const bool refused = message.has_error();
  world_.counted.refusals += refused;
  switch (asked.what) {
    case Asked::What::kHello: return Greeted(answer);
    case Asked::What::kMemory:
      asked_for_pool_ = false;
      if (!refused && pool_ == nullptr) pool_ = Pool::Make(world_, uid_, name_, model_, std::move(answer.fds));
      return;
    case Asked::What::kAdopt: return Adopted(answer);
    case Asked::What::kRegister:
      if (pool_ == nullptr) return;  // it has ended meanwhile
      pool_->asked = false;
      if (refused) return EndPool();
      pool_->row = message.register_region_reply().region();
      pool_->region_epoch = message.register_region_reply().region_epoch();
      pool_->registered = true;
      unpublished_ = pool_->Published();
      return;
    case Asked::What::kOffer:
      offering_ = false;
      if (!refused) storer_.Answered(message.prepare_store_reply(), asked.offered);
      return;
    case Asked::What::kLease:
      if (refused) return;
      leases_.push_back(message.acquire_lease_reply().lease());
      ++world_.counted.leases;
      return;
    case Asked::What::kUnregister:
      if (refused) return;
      ++world_.counted.unregistered;
      // I7: all that had it mapped have unmapped it.
      for (const SimClient* other : all) {
        if (other != this && other->Maps(asked.region)) world_.Fail("I7: a region has gone that an importer has mapped");
      }
      return;
    case Asked::What::kModel:
    case Asked::What::kOther: return;
  }
}

void SimClient::Adopted(ToClient& answer) {
  asked_for_pool_ = false;
  if (answer.message.has_error() || pool_ != nullptr) return;
  const kvmwire::AdoptRegionReply& reply = answer.message.adopt_region_reply();
  pool_ = Pool::Adopt(world_, uid_, reply, answer.fds);
  world_.Note("adopted", link_.pid(), reply.region(), reply.region_epoch());
  ++world_.counted.adoptions;
  if (pool_ != nullptr) return;
  kvmwire::ClientMessage message;
  message.mutable_unregister_region()->set_region(reply.region());
  message.mutable_unregister_region()->set_region_epoch(reply.region_epoch());
  link_.Send(std::move(message));
}

// ---- steps --------------------------------------------------------------------------------------

void SimClient::DoSomething(const std::vector<SimClient*>& all) {
  test::Random& random = world_.random;
  if (link_.Lost()) {
    world_.Note("connection lost", link_.pid());
    LostConnection();
  }
  if (now_ != nullptr && random.OneIn(2)) now_->GoOn(!world_.kvmd.running());
  if (before_ != nullptr && random.OneIn(2)) before_->GoOn(!world_.kvmd.running());
  if (random.OneIn(2)) storer_.GoOn(pool_.get());
  if (!link_.connected()) {
    if (random.OneIn(8)) link_.Connect();
    if (random.OneIn(2)) return Import();
    return Write();
  }
  if (greeted_ && pool_ == nullptr && random.OneIn(4)) return WantPool();
  if (link_.has_mail() && !random.OneIn(3)) return Receive(all);
  switch (random.Below(16)) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4: return Write();
    case 5:
    case 6:
    case 7:
    case 8:
    case 9: return Import();
    case 10:
    case 11:
    case 12:
      if (greeted_) return Offer();
      break;
    case 13:
      if (greeted_) return RenewOrRelease();
      break;
    case 14:
      if (random.OneIn(200)) return Unregister();
      if (before_ != nullptr && random.OneIn(50)) before_.reset();
      break;
    default:
      if (greeted_ && random.OneIn(4)) return MarkSomething();
      break;
  }
  if (!greeted_) return;
  for (const RegionName& region : now_->TakeUnmapped()) {
    kvmwire::ClientMessage message;
    message.mutable_withdraw_ack()->set_region(region.first);
    message.mutable_withdraw_ack()->set_region_epoch(region.second);
    link_.Send(std::move(message));
  }
  kvmwire::ClientMessage report;
  if (!copies_are_old_ && storer_.Report(*report.mutable_complete_store())) link_.Send(std::move(report));
}

void SimClient::WantPool() {
  if (asked_for_pool_) return;
  asked_for_pool_ = true;
  kvmwire::ClientMessage message;
  if (world_.random.OneIn(2)) {
    *message.mutable_adopt_region()->mutable_expected() = Pool::Describe(name_, model_);
    return link_.Ask({Asked::What::kAdopt}, std::move(message));
  }
  if (world_.random.OneIn(4)) {
    pool_ = Pool::Make(world_, uid_, name_, model_, {});
    asked_for_pool_ = false;
    return;
  }
  kvmwire::AllocateMemory& request = *message.mutable_allocate_memory();
  request.add_size_bytes(GenerationTableBytes(kPoolBlocks));
  request.add_size_bytes(kPoolBlocks * kBlockBytes);
  *request.mutable_for_region() = Pool::Describe(name_, model_);
  link_.Ask({Asked::What::kMemory}, std::move(message));
}

void SimClient::Write() {
  if (pool_ == nullptr) return;
  test::Random& random = world_.random;
  if (greeted_ && !pool_->registered && !pool_->asked) {
    pool_->asked = true;
    kvmwire::ClientMessage message;
    *message.mutable_register_region()->mutable_region() = pool_->descriptor;
    return link_.Ask({Asked::What::kRegister}, std::move(message), {pool_->generation_memory.fd(), pool_->payload.fd()});
  }
  const auto block = static_cast<std::uint32_t>(random.Below(kPoolBlocks));
  if (pool_->blocks[block].write != 0) {
    if (pool_->GoOn(block)) {
      unpublished_.push_back(pool_->blocks[block].record);
      world_.Note("block written", block, pool_->blocks[block].number, pool_->blocks[block].record.generation);
    }
  } else if (random.OneIn(8)) {
    pool_->Withdraw(block);
    if (pool_->registered && random.OneIn(2)) {
      kvmwire::ClientMessage message;
      message.mutable_retract()->set_region(pool_->row);
      message.mutable_retract()->set_region_epoch(pool_->region_epoch);
      message.mutable_retract()->add_blocks(block);
      link_.Send(std::move(message));
    }
  } else if (!pool_->Readable(block) || random.OneIn(3)) {
    pool_->Begin(block, static_cast<std::uint32_t>(random.Below(kNumbers / 2)) * 2 + model_);
  }
  if (unpublished_.empty() || !pool_->registered || !random.OneIn(3)) return;
  kvmwire::ClientMessage message;
  kvmwire::Publish& publish = *message.mutable_publish();
  publish.set_region(pool_->row);
  publish.set_region_epoch(pool_->region_epoch);
  publish.set_records(unpublished_.data(), unpublished_.size() * sizeof(PublishRecord));
  world_.counted.published += unpublished_.size();
  unpublished_.clear();
  link_.Send(std::move(message));
}

void SimClient::Offer() {
  if (pool_ == nullptr || !pool_->registered || offering_) return;
  std::vector<PublishRecord> records = pool_->Published();
  if (records.empty()) return;
  const std::size_t from = world_.random.Below(records.size());
  records.assign(records.begin() + static_cast<std::ptrdiff_t>(from),
                 records.begin() + static_cast<std::ptrdiff_t>(std::min(records.size(), from + 4)));
  kvmwire::ClientMessage message;
  kvmwire::PrepareStore& offer = *message.mutable_prepare_store();
  offer.set_region(pool_->row);
  offer.set_region_epoch(pool_->region_epoch);
  offer.set_records(records.data(), records.size() * sizeof(PublishRecord));
  offer.set_asked(world_.random.OneIn(2));
  offering_ = true;
  // As libkvclient promises kvmd: the copies of an earlier connection have ended.
  if (std::exchange(copies_are_old_, false)) storer_.EndCopies();
  link_.Ask({Asked::What::kOffer, std::move(records)}, std::move(message));
}

void SimClient::Import() {
  Peers* const peers = before_ != nullptr && world_.random.OneIn(4) ? before_.get() : now_.get();
  if (peers == nullptr) return;
  const std::uint64_t first = world_.random.Below(kNumbers);
  std::optional<IndexHit> hit;
  for (std::uint64_t i = 0; i < kChain && !hit; ++i) hit = peers->Begin(static_cast<std::uint32_t>((first + i) % kNumbers));
  if (!hit || !greeted_ || peers != now_.get()) return;
  if (world_.random.OneIn(16)) LeaseSomething(*hit);
  kvmwire::HostCacheRun& run = *used_.add_runs();
  run.set_region(hit->region);
  run.set_region_epoch(hit->region_epoch);
  run.set_slot(hit->block);
  run.set_blocks(1);
  if (used_.runs_size() < 8) return;
  kvmwire::ClientMessage message;
  *message.mutable_host_cache_use() = std::move(used_);
  used_.Clear();
  link_.Send(std::move(message));
}

void SimClient::LeaseSomething(const IndexHit& hit) {
  kvmwire::ClientMessage message;
  kvmwire::AcquireLease& acquire = *message.mutable_acquire_lease();
  acquire.set_registry_epoch(now_->registry().header().epoch);
  acquire.set_ttl_ms(static_cast<std::uint32_t>(world_.random.Between(1, 20'000)));
  kvmwire::LeaseSource& source = *acquire.add_sources();
  source.set_region(hit.region);
  source.set_region_epoch(hit.region_epoch);
  source.set_block(hit.block);
  source.set_generation(hit.generation);
  link_.Ask({Asked::What::kLease}, std::move(message));
}

void SimClient::RenewOrRelease() {
  if (leases_.empty()) return;
  const std::uint64_t lease = world_.random.Pick(leases_);
  kvmwire::ClientMessage message;
  if (world_.random.OneIn(2)) {
    message.mutable_renew_lease()->set_lease(lease);
    message.mutable_renew_lease()->set_ttl_ms(10'000);
    return link_.Ask({}, std::move(message));
  }
  message.mutable_release_lease()->set_lease(lease);
  std::erase(leases_, lease);
  link_.Send(std::move(message));
}

void SimClient::MarkSomething() {
  test::Random& random = world_.random;
  kvmwire::ClientMessage message;
  if (random.OneIn(3)) {
    message.mutable_end_computing()->set_mark(random.Between(1, 3));
    return link_.Send(std::move(message));
  }
  std::vector<BlockKey> keys;
  for (std::uint64_t i = random.Below(5); i > 0; --i) keys.push_back(KeyOf(static_cast<std::uint32_t>(random.Below(kNumbers))));
  message.mutable_mark_computing()->set_mark(random.Between(1, 3));
  message.mutable_mark_computing()->set_ttl_ms(static_cast<std::uint32_t>(random.Between(1, 10'000)));
  message.mutable_mark_computing()->set_keys(keys.data(), keys.size() * sizeof(BlockKey));
  link_.Ask({}, std::move(message));
}

void SimClient::Unregister() {
  if (pool_ == nullptr) return;
  world_.Note("pool ends", link_.pid(), pool_->row, pool_->region_epoch);
  const RegionName region{pool_->row, pool_->region_epoch};
  const bool tells = greeted_ && pool_->registered;
  EndPool();
  if (!tells) return;
  kvmwire::ClientMessage message;
  message.mutable_unregister_region()->set_region(region.first);
  message.mutable_unregister_region()->set_region_epoch(region.second);
  message.mutable_unregister_region()->set_ack_timeout_ms(5000);
  link_.Ask({Asked::What::kUnregister, {}, region}, std::move(message));
}

}  // namespace kvm::simulation
