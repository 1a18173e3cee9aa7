// kvmd against clients that say anything in any order. Each message is well-formed or nearly so,
// and names rows, leases and blocks that exist or have existed, so that it gets past the first
// check. Whatever they do, kvmd goes on, keeps within its limits, leaves others' blocks alone, and
// has nothing left of them when they have gone.
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "proto/shm/registry_view.h"
#include "tests/fuzz/mutator.h"
#include "tests/support/broker/offloading_worker.h"
#include "tests/support/data/random.h"
#include "tests/support/process/open_fds.h"

namespace kvm::test {
namespace {

constexpr std::uint32_t kBlocks = 16;
constexpr std::uint32_t kStored = 4;  // by the honest client
constexpr std::uint32_t kUid = 1000, kOtherUid = 1001;

struct Place {
  std::uint32_t row = 0, region_epoch = 0;
};

struct Talker {
  FakeConnection connection;
  std::unique_ptr<Sleeper> process;
  ClientId id = 0;
  std::vector<std::unique_ptr<WireRegion>> regions;
  std::vector<kvmwire::StoreGrant> grants;
};

Config Tight() {
  Config config;
  config.max_regions = 24;
  config.max_models = 3;
  config.max_orphans = 4;
  config.max_fds_per_domain = 60;
  config.max_leases_per_client = 4;
  config.max_lease_ttl_s = 20;
  config.orphan_ttl_s = 30;
  config.max_marked_keys_per_client = 8;
  config.offload_timeout_ms = 200;
  config.withdraw_timeout_ms = 20;
  config.host_cache_bytes = 4 * kBlocks * kBlockBytes;
  config.host_cache_slab_bytes = kBlocks * kBlockBytes;
  config.admins = {kOtherUid};
  return config;
}

class Noise {
 public:
  explicit Noise(std::uint64_t seed) : random_(seed), node_(Tight()), honest_(node_, "honest", kUid, kBlocks), talkers_(6) {
    for (std::uint32_t block = 0; block < kBlocks; ++block) records_.push_back(honest_.region.Write(block, {block + 1, 0x686f6e657374}));
    node_.Handle(honest_.id, honest_.region.PublishMessage(records_));
    REQUIRE(honest_.connection.Take(Body::kPublishAck).message.publish_ack().inserted() == kBlocks);
    Learn({honest_.region.row, honest_.region.region_epoch}, records_);
    honest_sources_ = sources_;
    FakeConnection looker;
    kvmwire::ClientMessage hello;
    hello.mutable_hello()->set_protocol_version(kProtocolVersion);
    hello.mutable_hello()->set_role(kvmwire::OBSERVER);
    const ClientId looking = node_.broker.Join(looker, {kDeadPid, kUid, kUid}, {});
    node_.Handle(looking, hello);
    Received reply = looker.Take(Body::kHelloReply);
    epoch_ = reply.message.hello_reply().epoch();
    Result<MappedMemory> memory = MappedMemory::Attach(reply.fds.at(0).get());
    KVM_REQUIRE_OK(memory);
    Result<RegistryView> view = RegistryView::Open(std::move(*memory));
    KVM_REQUIRE_OK(view);
    view_ = *view;
    node_.broker.Leave(looking, false);
    OffloadAndLease();
  }

  // The honest client's blocks in the host cache, too, and some of them held.
  void OffloadAndLease() {
    REQUIRE(honest_.PrepareStore(records_) == kBlocks);
    kvmwire::ClientMessage hold;
    hold.mutable_acquire_lease()->set_registry_epoch(epoch_);
    hold.mutable_acquire_lease()->set_ttl_ms(20'000);
    for (std::uint32_t i = 0; i < kStored; ++i) *hold.mutable_acquire_lease()->add_sources() = sources_[i];
    node_.Handle(honest_.id, hold);
    const kvmwire::AcquireLeaseReply held = honest_.connection.Take(Body::kAcquireLeaseReply).message.acquire_lease_reply();
    REQUIRE(held.blocks() == kStored);
    lease_ = held.lease();
  }

  void Say() {
    Talker& talker = random_.Pick(talkers_);
    if (talker.id == 0) return Join(talker);
    if (random_.OneIn(60)) return Leave(talker);
    kvmwire::ClientMessage message;
    std::vector<PeerFd> fds;
    Compose(talker, message, fds);
    if (random_.OneIn(8)) Garble(message);
    if (!random_.OneIn(10)) message.set_request_id(random_.Below(100));
    const Status handled = node_.broker.Handle(talker.id, std::move(message), std::move(fds));
    ++(handled ? deepest_.said : deepest_.refused);
    Listen(talker);
    if (!handled) Leave(talker);
    for (Talker& other : talkers_) Listen(other);
    honest_.connection.sent.clear();
  }

  void LetTimePass() {
    // Kvmd takes the real time, too
    if (random_.OneIn(3)) now_ += std::chrono::milliseconds(random_.Below(10));
    node_.broker.Tick(now_);
    for (std::uint64_t i = random_.Below(8); i > 0 && node_.broker.Work();) --i;
    if (random_.OneIn(4)) node_.broker.Sweep();
  }

  // What is held is held, however much others want the room.
  void CheckHeld() {
    kvmwire::ClientMessage extend;
    extend.mutable_renew_lease()->set_lease(lease_);
    extend.mutable_renew_lease()->set_ttl_ms(20'000);
    node_.Handle(honest_.id, extend);
    REQUIRE(honest_.connection.Take(Body::kAcquireLeaseReply).message.acquire_lease_reply().blocks() == kStored);
  }

  // Others' blocks are where they were, and what kvmd says of itself is within its limits.
  void CheckAll() {
    for (const PublishRecord& record : records_) {
      IndexEntry found[layout::kMaxReplicas];
      const std::size_t count = view_.index().Find(record.key, found);
      bool here = false;
      for (std::size_t i = 0; i < count; ++i) {
        here |= found[i].region == honest_.region.row && found[i].region_epoch == honest_.region.region_epoch &&
                found[i].block == record.block && found[i].generation == record.generation;
      }
      REQUIRE(here);
    }
    const kvmwire::DomainStatus domain = node_.Domain(kUid);
    const Config limits = Tight();
    CHECK(domain.regions() <= limits.max_regions);
    CHECK(domain.models() <= limits.max_models);
    CHECK(domain.fds() <= limits.max_fds_per_domain);
    CHECK(domain.leases() <= (talkers_.size() + 1) * limits.max_leases_per_client);
    CHECK(domain.client_totals().traffic_size() <= static_cast<int>(kMaxDomainTrafficPairs));
    CHECK(domain.marked_keys() <= talkers_.size() * limits.max_marked_keys_per_client);
    CHECK(domain.host_cache().bytes() <= limits.host_cache_bytes);
    CHECK(domain.host_cache().used_bytes() <= domain.host_cache().bytes());
    const auto raise = [](std::uint64_t& deepest, std::uint64_t now) { deepest = std::max(deepest, now); };
    raise(deepest_.regions, domain.regions());
    raise(deepest_.orphans, domain.orphans());
    raise(deepest_.leases, domain.leases());
    raise(deepest_.cached, domain.host_cache().blocks());
  }

  void End() {
    for (Talker& talker : talkers_) {
      if (talker.id != 0) Leave(talker);
    }
    CheckHeld();
    for (int i = 0; i < 20; ++i) {
      now_ += seconds(10);
      node_.broker.Tick(now_);
      node_.WorkAll();
      CheckAll();
      node_.broker.Sweep();
    }
    const kvmwire::DomainStatus domain = node_.Domain(kUid);
    CHECK(domain.orphans() == 0);
    CHECK(domain.leases() == 0);
    CHECK(domain.leased_blocks() == 0);
    CHECK(domain.regions() == 1 + domain.host_cache().slabs());
    CHECK(domain.entries() == kBlocks + domain.host_cache().blocks());
    CHECK(domain.clients() == 2);  // the honest one, and who asks
  }

  // How far it came.
  struct Deepest {
    std::uint64_t said = 0, refused = 0, regions = 0, orphans = 0, leases = 0, cached = 0, evicted = 0;
  };
  const Deepest& deepest() const { return deepest_; }

 private:
  void Join(Talker& talker) {
    const bool observer = random_.OneIn(20);
    if (random_.OneIn(3)) talker.process = std::make_unique<Sleeper>();
    UniqueFd process = talker.process ? talker.process->PidFd() : UniqueFd();
    const std::uint32_t uid = &talker == talkers_.data() ? kOtherUid : kUid;
    talker.id = node_.Join(talker.connection, talker.process ? talker.process->pid() : kDeadPid, uid,
                           observer ? kvmwire::OBSERVER : kvmwire::WORKER, std::move(process), random_.Below(3));
    Listen(talker);
  }

  void Leave(Talker& talker) {
    const bool died = random_.OneIn(2);
    if (died) talker.process.reset();
    node_.broker.Leave(talker.id, died);
    talker.process.reset();
    talker.connection.sent.clear();
    talker.id = 0;
    talker.regions.clear();
    talker.grants.clear();
  }

  // What others can know, too: rows, leases, grants.
  void Listen(Talker& talker) {
    for (const Received& received : talker.connection.sent) {
      const kvmwire::ServerMessage& message = received.message;
      if (message.has_register_region_reply()) {
        const kvmwire::RegisterRegionReply& reply = message.register_region_reply();
        if (!talker.regions.empty()) {
          talker.regions.back()->row = reply.region();
          talker.regions.back()->region_epoch = reply.region_epoch();
        }
        places_.push_back({reply.region(), reply.region_epoch()});
      }
      if (message.has_region_announce()) places_.push_back({message.region_announce().region(), message.region_announce().region_epoch()});
      if (message.has_acquire_lease_reply()) leases_.push_back(message.acquire_lease_reply().lease());
      deepest_.evicted += message.evict_reply().blocks();
      for (const kvmwire::StoreGrant& grant : message.prepare_store_reply().grants()) {
        grants_.push_back(grant);
        talker.grants.push_back(grant);
      }
    }
    talker.connection.sent.clear();
    const auto forget = [](auto& known) {
      if (known.size() > 200) known.erase(known.begin(), known.begin() + 100);
    };
    forget(places_);
    forget(leases_);
    forget(grants_);
    forget(sources_);
    forget(stored_);
    forget(descriptors_);
  }

  void Learn(Place place, const std::vector<PublishRecord>& records) {
    for (const PublishRecord& record : records) {
      kvmwire::LeaseSource source;
      source.set_region(place.row);
      source.set_region_epoch(place.region_epoch);
      source.set_block(record.block);
      source.set_generation(record.generation);
      sources_.push_back(source);
    }
  }

  Place AnyPlace(const Talker& talker) {
    if (!talker.regions.empty() && !random_.OneIn(3)) {
      const WireRegion& own = *random_.Pick(talker.regions);
      return {own.row, own.region_epoch};
    }
    if (!places_.empty() && !random_.OneIn(6)) return random_.Pick(places_);
    return {static_cast<std::uint32_t>(random_.Below(30)), static_cast<std::uint32_t>(random_.Below(200))};
  }
  template <class Message>
  void SetPlace(Message& message, Place place) {
    message.set_region(place.row);
    message.set_region_epoch(place.region_epoch);
  }
  std::uint64_t AnyLease() { return leases_.empty() || random_.OneIn(5) ? random_.Below(40) : random_.Pick(leases_); }
  std::uint32_t AnyMs() { return random_.OneIn(10) ? UINT32_MAX : static_cast<std::uint32_t>(random_.Below(30'000)); }
  std::uint32_t AnyBlock() { return static_cast<std::uint32_t>(random_.Below(kBlocks + 2)); }

  // Records of blocks that were written just now, or of none.
  std::string Records(Talker& talker, Place place) {
    std::vector<PublishRecord> records;
    const std::uint64_t salt = random_.Below(6);
    for (const auto& region : talker.regions) {
      if (region->row != place.row || region->region_epoch != place.region_epoch) continue;
      for (std::uint32_t block = 0; block < region->descriptor.block_count() && !random_.OneIn(12); ++block)
        records.push_back(region->Write(block, {block, salt + 1}));
    }
    Learn(place, records);
    if (random_.OneIn(8)) records.push_back({{random_.Next(), random_.Below(3)}, random_.Next(), random_.Below(5), AnyBlock(), 0});
    std::string bytes(reinterpret_cast<const char*>(records.data()), records.size() * sizeof(PublishRecord));
    if (random_.OneIn(40)) bytes.resize(bytes.size() / 2 + 1);
    return bytes;
  }

  void AddRegion(Talker& talker, kvmwire::ClientMessage& message, std::vector<PeerFd>& fds) {
    const std::string name = "noise-" + std::to_string(random_.Below(12));
    const std::uint64_t bytes = random_.OneIn(12) ? 2 * kBlockBytes : kBlockBytes;
    std::vector<UniqueFd> memory;
    if (random_.OneIn(2)) {
      kvmwire::ClientMessage ask;
      ask.mutable_allocate_memory()->add_size_bytes(GenerationTableBytes(kBlocks));
      ask.mutable_allocate_memory()->add_size_bytes(kBlocks * bytes);
      if (!node_.broker.Handle(talker.id, std::move(ask), {})) return;
      for (Received& received : talker.connection.sent) {
        if (received.fds.size() == 2 && received.message.has_empty()) memory = std::move(received.fds);
      }
      talker.connection.sent.clear();
    }
    const bool granted = !memory.empty();
    talker.regions.push_back(std::make_unique<WireRegion>(name, LlamaSpec(), kBlocks, bytes, std::move(memory)));
    WireRegion& region = *talker.regions.back();
    region.descriptor.set_outlives_owner(granted || random_.OneIn(3));
    descriptors_.push_back(region.descriptor);
    message = region.RegisterMessage();
    for (const int fd : region.fds()) {
      if (!random_.OneIn(30)) fds.emplace_back(UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)));
    }
    if (random_.OneIn(30)) fds.emplace_back(UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)));
    if (random_.OneIn(30) && !fds.empty()) std::swap(fds.front(), fds.back());
    if (talker.regions.size() > 6) talker.regions.erase(talker.regions.begin());
  }

  void Compose(Talker& talker, kvmwire::ClientMessage& message, std::vector<PeerFd>& fds) {
    const Place place = AnyPlace(talker);
    switch (random_.Below(24)) {
      case 0:
      case 1: return AddRegion(talker, message, fds);
      case 2:
      case 3:
      case 4:
        SetPlace(*message.mutable_publish(), place);
        message.mutable_publish()->set_records(Records(talker, place));
        return;
      case 5:
      case 6:
        SetPlace(*message.mutable_prepare_store(), place);
        message.mutable_prepare_store()->set_records(Records(talker, place));
        message.mutable_prepare_store()->set_asked(random_.OneIn(2));
        return;
      case 7:
      case 8: {
        kvmwire::CompleteStore& done = *message.mutable_complete_store();
        for (std::uint64_t i = random_.Below(20); i > 0; --i) {
          kvmwire::StoreOutcome& outcome = *done.add_outcomes();
          if (!talker.grants.empty() && !random_.OneIn(6)) {
            SetPlace(outcome, {talker.grants.back().region(), talker.grants.back().region_epoch()});
            outcome.set_slot(talker.grants.back().slot());
            outcome.set_generation(talker.grants.back().generation());
            talker.grants.pop_back();
          } else if (!grants_.empty()) {
            const kvmwire::StoreGrant& grant = grants_[grants_.size() - 1 - random_.Below(std::min<std::size_t>(grants_.size(), 20))];
            SetPlace(outcome, {grant.region(), grant.region_epoch()});
            outcome.set_slot(grant.slot());
            outcome.set_generation(grant.generation() + (random_.OneIn(10) ? 1 : 0));
          }
          outcome.set_stored(!random_.OneIn(4));
          if (!outcome.stored()) continue;
          kvmwire::LeaseSource source;
          SetPlace(source, {outcome.region(), outcome.region_epoch()});
          source.set_block(outcome.slot());
          source.set_generation(outcome.generation() + 1);
          stored_.push_back(source);
        }
        return;
      }
      case 9:
        for (std::uint64_t i = random_.Below(4); i > 0; --i) {
          kvmwire::HostCacheRun& run = *message.mutable_host_cache_use()->add_runs();
          SetPlace(run, AnyPlace(talker));
          run.set_slot(AnyBlock());
          run.set_blocks(random_.OneIn(5) ? UINT32_MAX : AnyBlock());
        }
        return;
      case 10:
      case 11:
      case 12: {
        kvmwire::AcquireLease& hold = *message.mutable_acquire_lease();
        hold.set_registry_epoch(random_.OneIn(10) ? epoch_ + 1 : epoch_);
        hold.set_ttl_ms(AnyMs());
        if (random_.OneIn(4)) hold.set_lease(AnyLease());
        hold.set_after(hold.lease() != 0 ? AnyBlock() : 0);
        const std::vector<kvmwire::LeaseSource>& known = stored_.empty() || random_.OneIn(3) ? sources_
                                                         : random_.OneIn(2)                  ? stored_
                                                                                             : honest_sources_;
        const std::size_t recent = std::min<std::size_t>(known.size(), 24), from = known.size() - 1 - random_.Below(recent);
        for (std::size_t i = from; i < std::min(known.size(), from + random_.Below(kBlocks)); ++i) *hold.add_sources() = known[i];
        return;
      }
      case 13:
        message.mutable_renew_lease()->set_lease(AnyLease());
        message.mutable_renew_lease()->set_ttl_ms(AnyMs());
        return;
      case 14: message.mutable_release_lease()->set_lease(AnyLease()); return;
      case 15:
        if (random_.OneIn(2)) {
          std::vector<BlockKey> keys;
          for (std::uint64_t i = random_.Below(12); i > 0; --i) keys.push_back({random_.Next(), random_.Below(4) << 62});
          message.mutable_mark_computing()->set_mark(random_.Below(5));
          message.mutable_mark_computing()->set_ttl_ms(AnyMs());
          message.mutable_mark_computing()->set_keys(keys.data(), keys.size() * sizeof(BlockKey));
          return;
        }
        if (random_.OneIn(2)) return message.mutable_end_computing()->set_mark(random_.Below(5));
        SetPlace(*message.mutable_withdraw_ack(), place);
        return;
      case 16:
        SetPlace(*message.mutable_retract(), place);
        for (std::uint64_t i = random_.Below(6); i > 0; --i) message.mutable_retract()->add_blocks(AnyBlock());
        return;
      case 17:
        if (random_.OneIn(2)) return Compose(talker, message, fds);  // less often than the rest
        SetPlace(*message.mutable_unregister_region(), place);
        message.mutable_unregister_region()->set_ack_timeout_ms(AnyMs());
        return;
      case 18:
      case 19:
        if (!descriptors_.empty()) *message.mutable_adopt_region()->mutable_expected() = random_.Pick(descriptors_);
        if (random_.OneIn(3)) message.mutable_adopt_region()->mutable_expected()->set_name("");
        return;
      case 20: {
        kvmwire::Reclaim& reclaim = *message.mutable_reclaim();
        reclaim.set_name("noise-" + std::to_string(random_.Below(12)));
        if (random_.OneIn(3)) reclaim.set_device_uuid(std::string(random_.OneIn(4) ? 3 : 16, '\0'));
        reclaim.set_min_age_s(static_cast<std::uint32_t>(random_.Below(4)));
        reclaim.set_ack_timeout_ms(AnyMs());
        reclaim.set_force(random_.OneIn(3));
        return;
      }
      case 21:
        for (std::uint64_t i = random_.Below(4); i > 0; --i)
          message.mutable_allocate_memory()->add_size_bytes(random_.OneIn(4) ? random_.Next() : random_.Below(10'000));
        return;
      case 22: {
        ModelSpec spec = LlamaSpec();
        spec.revision = std::to_string(random_.Below(5));
        message.mutable_declare_model()->set_spec(spec.Canonical());
        message.mutable_declare_model()->set_announce_again(random_.OneIn(2));
        return;
      }
      default:
        switch (random_.Below(5)) {
          case 0: message.mutable_ping(); return;
          case 1:
            message.mutable_status_query()->set_clients(true);
            message.mutable_status_query()->set_details(random_.OneIn(2));
            return;
          case 2: return Report(*message.mutable_stats_report());
          case 3: return Evict(*message.mutable_evict());
          default: message.mutable_hello()->set_protocol_version(kProtocolVersion); return;
        }
    }
  }

  void Report(kvmwire::StatsReport& report) {
    report.set_unmapped_reason(std::string(random_.Below(1000), 'x'));
    for (std::uint64_t i = random_.Below(kMaxRecentMisses + 1); i > 0; --i) {
      kvmwire::RecentMiss& miss = *report.add_recent_misses();
      miss.set_reason(static_cast<kvmwire::MissReason>(random_.Below(9)));
      miss.set_at_ms(random_.Next());
      miss.set_key(std::string(random_.OneIn(60) ? 3 : random_.OneIn(3) ? 0 : sizeof(BlockKey), 'k'));
    }
    for (std::uint64_t i = random_.Below(kMaxTrafficPairs + (random_.OneIn(30) ? 2 : 1)); i > 0; --i) {
      kvmwire::DeviceTraffic& pair = *report.add_traffic();
      pair.set_from_device(std::string(16, static_cast<char>(random_.Below(256))));
      pair.set_to_device(std::string(random_.OneIn(400) ? 17 : random_.OneIn(3) ? 0 : 16, static_cast<char>(random_.Below(4))));
      pair.set_bytes(random_.Next());
      pair.set_blocks(random_.Next());
    }
  }

  void Evict(kvmwire::Evict& evict) {
    std::vector<BlockKey> keys;
    if (random_.OneIn(2)) {
      for (std::uint64_t i = random_.Below(8); i > 0; --i) keys.push_back(random_.Pick(records_).key);
    }
    evict.set_keys(keys.data(), keys.size() * sizeof(BlockKey));
    if (random_.OneIn(2)) evict.set_fingerprint(LlamaSpec().ComputeFingerprint().bytes.data(), 32);
    if (random_.OneIn(4)) evict.set_domain("uid-" + std::to_string(kUid + random_.Below(3)));
  }

  // Changed somewhere, if it is still a message.
  void Garble(kvmwire::ClientMessage& message) {
    kvmwire::ClientMessage changed;
    if (changed.ParseFromString(fuzz::Mutate({message.SerializeAsString()}, random_))) message = std::move(changed);
  }

  Random random_;
  Node node_;
  SteadyTime now_ = std::chrono::steady_clock::now();
  OffloadingWorker honest_;
  std::uint64_t lease_ = 0;
  std::vector<PublishRecord> records_;
  RegistryView view_;
  std::uint64_t epoch_ = 0;
  std::vector<Talker> talkers_;
  std::vector<Place> places_;
  std::vector<std::uint64_t> leases_;
  std::vector<kvmwire::StoreGrant> grants_;
  std::vector<kvmwire::LeaseSource> sources_, stored_, honest_sources_;
  std::vector<kvmwire::RegionDescriptor> descriptors_;
  Deepest deepest_;
};

TEST_CASE("kvmd: any messages in any order leave kvmd running, and no state once the clients have gone", "[unit]") {
  const int before = OpenFds();
  int with_orphans = 0, with_leases = 0, with_cache = 0, with_evicted = 0;
  for (std::uint64_t seed = 1; seed <= fuzz::Rounds(8); ++seed) {
    INFO("seed " << seed);
    Noise noise(seed);
    for (int i = 0; i < 4000; ++i) {
      noise.Say();
      if (i % 3 == 0) noise.LetTimePass();
      if (i % 100 == 0) {
        noise.CheckAll();
        noise.CheckHeld();
      }
    }
    noise.End();
    // All of it was reached, not only refused.
    CHECK(noise.deepest().said > 2000);
    CHECK(noise.deepest().refused > 0);
    CHECK(noise.deepest().regions > 4);
    with_orphans += noise.deepest().orphans > 0;
    with_leases += noise.deepest().leases > 1;
    with_cache += noise.deepest().cached > 0;
    with_evicted += noise.deepest().evicted > 0;
  }
  CHECK(with_orphans > 2);
  CHECK(with_leases > 2);
  CHECK(with_cache > 2);
  CHECK(with_evicted > 2);
  CHECK(OpenFds() == before);
}

}  // namespace
}  // namespace kvm::test
