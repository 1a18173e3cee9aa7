// A domain without sockets: capacity, fairness, replicas, staleness, leaving, model rows.
#include <unistd.h>

#include <chrono>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "daemon/registry/domain.h"
#include "daemon/system/work_meter.h"
#include "tests/catch.h"
#include "tests/support/data/model_specs.h"
#include "tests/support/data/random.h"
#include "tests/support/kvmd/wire_client.h"

namespace kvm::daemon {
namespace {

using test::LlamaSpec;
using test::WireRegion;

BlockKey Key(std::uint64_t n) {
  test::Random random(n + 1);
  return {random.Next(), random.Next()};
}

struct Registry {
  explicit Registry(Config config_ = {}, DescriptorQuota* shared = nullptr)
      : config(std::move(config_)), own_descriptors(config, false), descriptors(shared != nullptr ? *shared : own_descriptors) {
    Result<std::unique_ptr<Domain>> made = Domain::Create("test", config, descriptors);
    KVM_REQUIRE_OK(made);
    domain = std::move(*made);
    KVM_REQUIRE_OK(domain->models().Declare(1, 1000, LlamaSpec()));
    Result<MappedMemory> memory = MappedMemory::Attach(domain->segment().fd());
    KVM_REQUIRE_OK(memory);
    Result<RegistryView> opened = RegistryView::Open(std::move(*memory));
    KVM_REQUIRE_OK(opened);
    view = *opened;
  }

  // `further`: descriptors of segments beside the first.
  Result<Region*> Register(ClientId client, WireRegion& region, std::uint32_t uid = 1000, const std::vector<int>& further = {}) {
    std::vector<PeerFd> fds;
    for (const int fd : region.fds()) fds.emplace_back(UniqueFd(::dup(fd)));
    for (const int fd : further) fds.emplace_back(UniqueFd(::dup(fd)));
    Result<std::unique_ptr<Region>> prepared = domain->PrepareRegion(client, region.descriptor, std::move(fds));
    if (!prepared) return prepared.error();
    Result<Region*> registered = domain->AddRegion({client, 100, uid}, std::move(*prepared));
    if (registered) {
      region.row = (*registered)->row;
      region.region_epoch = (*registered)->info.region_epoch;
    }
    return registered;
  }
  kvmwire::PublishAck Publish(ClientId client, const WireRegion& region, const std::vector<PublishRecord>& records) {
    return domain->Publish(client, region.PublishMessage(records).publish());
  }
  // Publishes blocks [from, to) under Key(key_base + block).
  kvmwire::PublishAck PublishRange(ClientId client, WireRegion& region, std::uint32_t from, std::uint32_t to, std::uint64_t key_base) {
    std::vector<PublishRecord> records;
    for (std::uint32_t block = from; block < to; ++block) records.push_back(region.Write(block, Key(key_base + block)));
    return Publish(client, region, records);
  }
  std::size_t Replicas(const BlockKey& key) const {
    IndexEntry out[layout::kMaxReplicas];
    return view.index().Find(key, out);
  }
  const layout::Counters& counters() const { return view.header().counters; }

  Config config;
  DescriptorQuota own_descriptors;
  DescriptorQuota& descriptors;
  std::unique_ptr<Domain> domain;
  RegistryView view;
};

Config Small(std::uint64_t max_entries) {
  Config config;
  config.max_entries = max_entries;
  config.max_regions = 8;
  config.max_models = 2;
  return config;
}

TEST_CASE("Regions: once every epoch was used, a registration is refused with what to do, and none is used twice", "[unit]") {
  Result<RegistrySegment> segment = RegistrySegment::Create("test", {.max_entries = 1024, .max_regions = 4, .max_models = 4});
  KVM_REQUIRE_OK(segment);
  RegionTable table(*segment, 4, 0xffffffff);
  Result<Region*> last = table.Add({1, 100, 1000}, std::make_unique<Region>());
  KVM_REQUIRE_OK(last);
  CHECK((*last)->info.region_epoch == 0xffffffff);
  auto next = std::make_unique<Region>();
  next->descriptor.set_name("next");
  KVM_CHECK_ERROR(table.Add({1, 100, 1000}, std::move(next)), Errc::kResourceExhausted, "restart kvmd");
}

TEST_CASE("Registry: an entry costs less than 100 bytes", "[unit]") {
  Config config;
  const Registry registry(config);
  const std::uint64_t rows = config.max_regions * sizeof(layout::RegionRow) + config.max_models * sizeof(layout::ModelRow);
  const std::uint64_t reverse_map = sizeof(std::uint32_t);
  CHECK((registry.domain->segment().size() - rows) / config.max_entries + reverse_map < 100);
  CHECK(registry.view.index().slots() * 3 >= config.max_entries * 4);
}

TEST_CASE("Registry: a full index makes room instead of growing", "[unit]") {
  Registry registry(Small(256));
  WireRegion region("pool", LlamaSpec(), 1000);
  KVM_REQUIRE_OK(registry.Register(1, region));
  for (std::uint32_t from = 0; from < 1000; from += 100) {
    const kvmwire::PublishAck ack = registry.PublishRange(1, region, from, from + 100, 0);
    CHECK(ack.inserted() == 100);
    CHECK(registry.domain->entries() <= 256);
  }
  CHECK(registry.domain->entries() == 256);
  CHECK(registry.view.header().live_entries.load() == 256);
  CHECK(registry.counters().published.load() == 1000);
  CHECK(registry.counters().evicted.load() == 1000 - 256);
  std::size_t found = 0;
  for (std::uint32_t block = 0; block < 1000; ++block) found += registry.Replicas(Key(block));
  CHECK(found == 256);
}

TEST_CASE("Registry: a client over its share evicts its own entries, not those of a client below it", "[unit]") {
  Registry registry(Small(256));
  KVM_REQUIRE_OK(registry.domain->models().Declare(2, 1000, LlamaSpec()));
  WireRegion greedy("greedy", LlamaSpec(), 4000), modest("modest", LlamaSpec(), 64);
  KVM_REQUIRE_OK(registry.Register(1, greedy));
  KVM_REQUIRE_OK(registry.Register(2, modest));
  CHECK(registry.PublishRange(2, modest, 0, 64, 100'000).inserted() == 64);
  CHECK(registry.PublishRange(1, greedy, 0, 4000, 0).inserted() == 4000);
  CHECK(registry.domain->AccountOf(2).entries == 64);
  CHECK(registry.domain->AccountOf(1).entries == 192);
}

TEST_CASE("Registry: a new client gets room from clients that have more than their share", "[unit]") {
  Registry registry(Small(256));
  KVM_REQUIRE_OK(registry.domain->models().Declare(2, 1000, LlamaSpec()));
  WireRegion first("first", LlamaSpec(), 256), second("second", LlamaSpec(), 256);
  KVM_REQUIRE_OK(registry.Register(1, first));
  CHECK(registry.PublishRange(1, first, 0, 256, 0).inserted() == 256);
  KVM_REQUIRE_OK(registry.Register(2, second));
  CHECK(registry.PublishRange(2, second, 0, 256, 100'000).inserted() == 256);
  CHECK(registry.domain->AccountOf(1).entries == 128);
  CHECK(registry.domain->AccountOf(2).entries == 128);
}

// Where ClockEviction looks at slots without end, it costs a million looks: seen.
TEST_CASE("Registry: that no entry may go is said after few looks, however large the index is", "[unit]") {
  constexpr std::uint32_t kEntries = 5000;
  Registry registry(Small(kEntries));
  WireRegion region("pool", LlamaSpec(), kEntries), other("other", LlamaSpec(), 8);
  const Result<Region*> registered = registry.Register(1, region);
  KVM_REQUIRE_OK(registered);
  KVM_REQUIRE_OK(registry.Register(2, other));
  REQUIRE(registry.PublishRange(1, region, 0, kEntries, 0).inserted() == kEntries);
  for (std::uint32_t block = 0; block < kEntries; ++block) REQUIRE(registry.domain->Pin(**registered, block));
  const PublishRecord one = other.Write(0, Key(kEntries));
  const WorkUnits before = WorkMeter::spent();
  CHECK(registry.Publish(2, other, {one}).refused_full() == 1);
  CHECK(WorkMeter::spent() - before < 1000);
}

TEST_CASE("Registry: entries of an owner that has gone make room before a live owner's", "[unit]") {
  Registry registry(Small(256));
  KVM_REQUIRE_OK(registry.domain->models().Declare(2, 1000, LlamaSpec()));
  WireRegion gone("gone", LlamaSpec(), 192), live("live", LlamaSpec(), 256);
  Result<Region*> orphan = registry.Register(2, gone);
  KVM_REQUIRE_OK(orphan);
  KVM_REQUIRE_OK(registry.Register(1, live));
  CHECK(registry.PublishRange(2, gone, 0, 128, 100'000).inserted() == 128);
  CHECK(registry.PublishRange(1, live, 0, 128, 0).inserted() == 128);
  registry.domain->MakeOrphan(**orphan, {std::chrono::steady_clock::now(), std::make_shared<WatchedProcess>(UniqueFd(), true)});
  CHECK(registry.PublishRange(1, live, 128, 192, 0).inserted() == 64);
  // The search is bounded: where few entries are of those that have gone, one may be overlooked.
  CHECK(registry.domain->AccountOf(1).entries >= 190);
  CHECK(registry.domain->AccountOf(2).entries <= 66);
}

TEST_CASE("Registry: of chains that are as old, the tails make room and the heads stay", "[unit]") {
  Registry registry(Small(256));
  WireRegion region("pool", LlamaSpec(), 512);
  KVM_REQUIRE_OK(registry.Register(1, region));
  std::vector<PublishRecord> records;
  for (std::uint32_t block = 0; block < 256; ++block) {
    records.push_back(region.Write(block, Key(block)));
    records.back().depth = block % 16;  // 16 chains of 16 blocks
  }
  CHECK(registry.Publish(1, region, records).inserted() == 256);
  CHECK(registry.PublishRange(1, region, 256, 384, 0).inserted() == 128);
  std::size_t heads = 0, tails = 0;
  for (std::uint32_t block = 0; block < 256; ++block) {
    if (block % 16 == 0) heads += registry.Replicas(Key(block));
    if (block % 16 == 15) tails += registry.Replicas(Key(block));
  }
  CHECK(heads == 16);
  CHECK(tails == 0);
}

TEST_CASE("Registry: a user with many connections has the share of one user", "[unit]") {
  Config config = Small(256);
  config.max_regions = 32;
  Registry registry(config);
  std::vector<std::unique_ptr<WireRegion>> regions;
  const auto publish = [&](ClientId client, std::uint32_t uid, std::uint32_t blocks) {
    KVM_REQUIRE_OK(registry.domain->models().Declare(client, 1000, LlamaSpec()));
    regions.push_back(std::make_unique<WireRegion>("pool-" + std::to_string(client), LlamaSpec(), blocks));
    KVM_REQUIRE_OK(registry.Register(client, *regions.back(), uid));
    registry.PublishRange(client, *regions.back(), 0, blocks, 1000 * client);
  };
  publish(2, 2002, 100);
  for (ClientId client = 10; client < 26; ++client) publish(client, 2001, 64);
  CHECK(registry.domain->AccountOf(2).entries == 100);
}

TEST_CASE("Registry: regions of a user count over all of its connections", "[unit]") {
  Config config = Small(128);
  config.max_regions_per_user = 2;
  Registry registry(config);
  WireRegion one("one", LlamaSpec(), 8, 64), two("two", LlamaSpec(), 8, 64), three("three", LlamaSpec(), 8, 64);
  KVM_REQUIRE_OK(registry.Register(1, one, 2001));
  KVM_REQUIRE_OK(registry.Register(2, two, 2001));
  KVM_CHECK_ERROR(registry.Register(3, three, 2001), Errc::kResourceExhausted, "user 2001");
  KVM_CHECK_ERROR(registry.Register(3, three, 2001), Errc::kResourceExhausted, "--max-regions-per-user");
  KVM_REQUIRE_OK(registry.Register(4, three, 2002));
}

TEST_CASE("Registry: stale entries make room before good ones", "[unit]") {
  Registry registry(Small(128));
  WireRegion region("pool", LlamaSpec(), 256);
  KVM_REQUIRE_OK(registry.Register(1, region));
  CHECK(registry.PublishRange(1, region, 0, 128, 0).inserted() == 128);
  for (std::uint32_t block = 0; block < 128; ++block) region.generations.BeginWrite(block);
  CHECK(registry.PublishRange(1, region, 128, 256, 0).inserted() == 128);
  // The search is bounded, so the last few stale ones may be overlooked.
  CHECK(registry.counters().evicted.load() < 16);
  CHECK(registry.counters().swept.load() + registry.counters().evicted.load() == 128);
}

TEST_CASE("Registry: publishes that can't be true are refused and counted", "[unit]") {
  Registry registry(Small(128));
  WireRegion region("pool", LlamaSpec(), 8);
  KVM_REQUIRE_OK(registry.Register(1, region));
  PublishRecord stale = region.Write(0, Key(0));
  region.generations.BeginWrite(0);
  PublishRecord good = region.Write(1, Key(1)), odd = good, zero = good, far = good;
  odd.generation |= 1;
  zero.generation = 0;
  far.block = 8;
  const kvmwire::PublishAck ack = registry.Publish(1, region, {stale, odd, zero, far, good});
  CHECK(ack.refused_stale() == 1);
  CHECK(ack.refused_invalid() == 3);
  CHECK(ack.inserted() == 1);
  CHECK(registry.domain->entries() == 1);
  CHECK(registry.Publish(2, region, {good}).refused_invalid() == 1);  // another client's region
  ++region.region_epoch;
  CHECK(registry.Publish(1, region, {good}).refused_invalid() == 1);
}

TEST_CASE("Registry: a block has one entry, its latest", "[unit]") {
  Registry registry(Small(128));
  WireRegion region("pool", LlamaSpec(), 8);
  KVM_REQUIRE_OK(registry.Register(1, region));
  CHECK(registry.Publish(1, region, {region.Write(3, Key(0))}).inserted() == 1);
  // The same key anew
  CHECK(registry.Publish(1, region, {region.Write(3, Key(0))}).inserted() == 1);
  CHECK(registry.domain->entries() == 1);
  CHECK(registry.counters().replaced.load() == 0);
  CHECK(registry.Publish(1, region, {region.Write(3, Key(1))}).inserted() == 1);
  CHECK(registry.domain->entries() == 1);
  CHECK(registry.counters().replaced.load() == 1);
  CHECK(registry.Replicas(Key(0)) == 0);
  IndexEntry entry;
  REQUIRE(registry.view.index().Find(Key(1), {&entry, 1}) == 1);
  CHECK(entry.generation == region.generations.Current(3));
}

TEST_CASE("Registry: replicas are limited, and a stale one is replaced", "[unit]") {
  Config config = Small(128);
  config.max_replicas = 3;
  Registry registry(config);
  WireRegion region("pool", LlamaSpec(), 8);
  KVM_REQUIRE_OK(registry.Register(1, region));
  for (std::uint32_t block = 0; block < 3; ++block) CHECK(registry.Publish(1, region, {region.Write(block, Key(0))}).inserted() == 1);
  CHECK(registry.Publish(1, region, {region.Write(3, Key(0))}).refused_replicas() == 1);
  region.generations.BeginWrite(1);
  CHECK(registry.Publish(1, region, {region.Write(4, Key(0))}).inserted() == 1);
  IndexEntry found[layout::kMaxReplicas];
  REQUIRE(registry.view.index().Find(Key(0), found) == 3);
  CHECK(found[0].block == 0);
  CHECK(found[1].block == 2);
  CHECK(found[2].block == 4);
}

TEST_CASE("Registry: retracting drops entries of rewritten blocks only", "[unit]") {
  Registry registry(Small(128));
  WireRegion region("pool", LlamaSpec(), 8);
  KVM_REQUIRE_OK(registry.Register(1, region));
  registry.PublishRange(1, region, 0, 8, 0);
  region.generations.BeginWrite(2);
  kvmwire::Retract retract;
  retract.set_region(region.row);
  retract.set_region_epoch(region.region_epoch);
  for (const std::uint32_t block : {2u, 2u, 3u, 8u, 0xFFFFFFFFu}) retract.add_blocks(block);
  int next = 0;
  while (!registry.domain->Retract(2, retract, next, WorkBudget())) continue;
  CHECK(registry.domain->entries() == 8);
  next = 0;
  while (!registry.domain->Retract(1, retract, next, WorkBudget())) continue;
  CHECK(registry.domain->entries() == 7);
  CHECK(registry.counters().retracted.load() == 1);
  CHECK(registry.Replicas(Key(2)) == 0);
  CHECK(registry.Replicas(Key(3)) == 1);
}

TEST_CASE("Registry: the sweeper finds every rewritten block, also after idle rounds", "[unit]") {
  Registry registry(Small(4096));
  WireRegion region("pool", LlamaSpec(), 4000);
  KVM_REQUIRE_OK(registry.Register(1, region));
  registry.PublishRange(1, region, 0, 4000, 0);
  for (int i = 0; i < 100; ++i) registry.domain->Sweep(8192);
  CHECK(registry.counters().swept.load() == 0);
  for (std::uint32_t block = 0; block < 4000; block += 2) region.generations.BeginWrite(block);
  for (int i = 0; i < 100; ++i) registry.domain->Sweep(8192);
  CHECK(registry.counters().swept.load() == 2000);
  CHECK(registry.view.header().live_entries.load() == 2000);
  for (std::uint32_t block = 0; block < 4000; ++block) REQUIRE(registry.Replicas(Key(block)) == block % 2);
}

TEST_CASE("Registry: a region leaves in slices, and its row is reused only afterwards", "[unit]") {
  Config config = Small(4096);
  config.max_regions = 1;
  Registry registry(config);
  WireRegion region("pool", LlamaSpec(), 1000), next("next", LlamaSpec(), 10);
  Result<Region*> registered = registry.Register(1, region);
  KVM_REQUIRE_OK(registered);
  registry.PublishRange(1, region, 0, 1000, 0);
  KVM_CHECK_ERROR(registry.Register(1, next), Errc::kResourceExhausted, "--max-regions");

  (*registered)->waiting_for.insert(9);
  registry.domain->StartLeaving(**registered, /*asks_importers=*/true);
  layout::RegionInfo info;
  REQUIRE(registry.view.ReadRegion(region.row, info));
  CHECK(info.state == static_cast<std::uint32_t>(layout::RegionState::kWithdrawing));
  CHECK(registry.Publish(1, region, {region.Write(0, Key(5000))}).refused_invalid() == 1);
  CHECK(registry.domain->Reap(400));
  CHECK(registry.domain->entries() == 600);
  CHECK(registry.domain->Reap(400));
  CHECK_FALSE(registry.domain->Reap(400));
  CHECK(registry.domain->entries() == 0);
  CHECK(registry.counters().reaped.load() == 1000);
  // An importer has it mapped
  KVM_CHECK_ERROR(registry.Register(1, next), Errc::kResourceExhausted, "--max-regions");

  Region* leaving = registry.domain->FindRegion(region.row, region.region_epoch);
  REQUIRE(leaving != nullptr);
  leaving->waiting_for.clear();
  registry.domain->Reap(1);
  CHECK(registry.domain->FindRegion(region.row, region.region_epoch) == nullptr);
  CHECK_FALSE(registry.view.ReadRegion(region.row, info));
  KVM_REQUIRE_OK(registry.Register(1, next));
  CHECK(next.row == region.row);
  CHECK(next.region_epoch != region.region_epoch);
  CHECK(registry.domain->AccountOf(1).blocks == 10);
}

TEST_CASE("Registry: a full table of regions refuses the next one, of any user", "[unit]") {
  Config config = Small(4096);
  config.max_regions = 2;
  config.max_regions_per_user = 2;
  Registry registry(config);
  WireRegion first("first", LlamaSpec(), 10), second("second", LlamaSpec(), 10), third("third", LlamaSpec(), 10);
  KVM_REQUIRE_OK(registry.Register(1, first, 1000));
  KVM_REQUIRE_OK(registry.Register(1, second, 1000));
  KVM_CHECK_ERROR(registry.Register(1, third, 1001), Errc::kResourceExhausted, "region table is full");
  KVM_CHECK_ERROR(registry.Register(1, third, 1001), Errc::kResourceExhausted, "(--max-regions)");
}

TEST_CASE("Registry: a region takes the steps that are drawn and no others", "[unit]") {
  using enum RegionPhase;
  const std::set<std::pair<RegionPhase, RegionPhase>> drawn{{kFree, kLive},    {kLive, kOrphan},    {kOrphan, kLive},
                                                            {kLive, kLeaving}, {kOrphan, kLeaving}, {kLeaving, kFree}};
  for (const RegionPhase from : {kFree, kLive, kOrphan, kLeaving}) {
    for (const RegionPhase to : {kFree, kLive, kOrphan, kLeaving}) {
      INFO(static_cast<int>(from) << " to " << static_cast<int>(to));
      CHECK(MayFollow(from, to) == drawn.contains({from, to}));
    }
  }
}

TEST_CASE("Registry: the row and the counts of a region follow it from phase to phase", "[unit]") {
  const bool asks_importers = GENERATE(false, true);
  Registry registry(Small(64));
  WireRegion region("pool", LlamaSpec(), 8);
  Result<Region*> registered = registry.Register(1, region);
  KVM_REQUIRE_OK(registered);
  const auto shows = [&](layout::RegionState state, std::uint32_t live, std::uint32_t orphans) {
    layout::RegionInfo info;
    const bool taken = registry.view.ReadRegion(region.row, info);
    CHECK(taken == (state != layout::RegionState::kFree));
    if (taken) CHECK(info.state == static_cast<std::uint32_t>(state));
    CHECK(registry.domain->live_regions() == live);
    CHECK(registry.view.header().live_regions.load() == live);
    CHECK(registry.domain->orphans() == orphans);
  };
  const auto orphan = [&] {
    registry.domain->MakeOrphan(**registered, {std::chrono::steady_clock::now(), std::make_shared<WatchedProcess>(UniqueFd(), true)});
  };
  shows(layout::RegionState::kLive, 1, 0);
  orphan();
  shows(layout::RegionState::kOrphan, 0, 1);
  KVM_REQUIRE_OK(registry.domain->TakeOver(**registered, {2, 101, 1000}));
  CHECK_FALSE((*registered)->orphan.has_value());
  shows(layout::RegionState::kLive, 1, 0);
  orphan();
  registry.domain->StartLeaving(**registered, asks_importers);
  CHECK((*registered)->phase() == RegionPhase::kLeaving);
  CHECK_FALSE((*registered)->orphan.has_value());
  shows(asks_importers ? layout::RegionState::kWithdrawing : layout::RegionState::kFree, 0, 0);
  registry.domain->Reap(1);
  CHECK(registry.domain->FindRegion(region.row, region.region_epoch) == nullptr);
  shows(layout::RegionState::kFree, 0, 0);
}

TEST_CASE("Registry: keys that share one home are refused to their publisher, and cost others no time", "[unit]") {
  Registry registry(Small(8192));
  WireRegion region("pool", LlamaSpec(), 8192);
  KVM_REQUIRE_OK(registry.Register(1, region));
  std::vector<PublishRecord> records;
  for (std::uint32_t block = 0; block < 8000; ++block) records.push_back(region.Write(block, BlockKey{block, 12345}));
  const kvmwire::PublishAck ack = registry.Publish(1, region, records);
  CHECK(ack.inserted() == kMaxDisplacement + 1);
  CHECK(ack.refused_full() == 8000 - (kMaxDisplacement + 1));
}

TEST_CASE("Registry: a model's row lives while a client declares the model or has a region of it", "[unit]") {
  Registry registry(Small(128));
  WireRegion region("pool", LlamaSpec(), 8);
  Result<Region*> registered = registry.Register(2, region);  // client 1 has declared the model
  KVM_REQUIRE_OK(registered);
  const std::uint32_t model = (*registered)->info.model;
  registry.domain->models().ForgetClient(1);
  layout::ModelInfo info;
  REQUIRE(registry.view.ReadModel(model, info));
  CHECK(std::string(info.spec, info.spec_bytes) == LlamaSpec().Canonical());
  registry.domain->StartLeaving(**registered, /*asks_importers=*/false);
  registry.domain->Reap(1);
  CHECK_FALSE(registry.view.ReadModel(model, info));
  CHECK(registry.domain->models().live() == 0);
  CHECK(registry.domain->idle());

  ModelSpec spec = LlamaSpec();
  for (int i = 0; i < 2; ++i) {
    spec.revision = std::to_string(i);
    KVM_REQUIRE_OK(registry.domain->models().Declare(1, 1000, spec));
  }
  spec.revision = "one too many";
  KVM_CHECK_ERROR(registry.domain->models().Declare(1, 1000, spec), Errc::kResourceExhausted, "--max-models");
}

TEST_CASE("Registry: a domain's descriptors have a limit, which its clients share and get back", "[unit]") {
  Config config = Small(128);
  config.max_fds_per_domain = 5;
  Registry registry(config);
  WireRegion first("first", LlamaSpec(), 8, 64), second("second", LlamaSpec(), 8, 64), third("third", LlamaSpec(), 8, 64);
  KVM_REQUIRE_OK(registry.Register(1, first));
  KVM_REQUIRE_OK(registry.Register(2, second));
  CHECK(registry.domain->fds() == 4);
  CHECK(registry.domain->max_fds() == 5);
  KVM_CHECK_ERROR(registry.Register(3, third), Errc::kResourceExhausted, "--max-fds-per-domain");
  daemon::Region* gone = registry.domain->FindRegion(first.row, first.region_epoch);
  REQUIRE(gone != nullptr);
  registry.domain->StartLeaving(*gone, /*asks_importers=*/false);
  while (registry.domain->Reap(64)) continue;
  CHECK(registry.domain->fds() == 2);
  KVM_REQUIRE_OK(registry.Register(3, third));
}

TEST_CASE("Registry: all domains together keep no more descriptors than the process may, and a domain that ends frees its own", "[unit]") {
  Config config = Small(128);
  config.max_fds_per_domain = 100;
  config.max_regions = 32;
  DescriptorQuota descriptors(config, false, 100);
  REQUIRE(descriptors.max() == 64);
  std::vector<std::unique_ptr<WireRegion>> regions;
  const auto add = [&](Registry& to) {
    regions.push_back(std::make_unique<WireRegion>("pool-" + std::to_string(regions.size()), LlamaSpec(), 8, 64));
    return to.Register(1, *regions.back());
  };
  Registry first(config, &descriptors);
  {
    Registry second(config, &descriptors);
    for (int i = 0; i < 16; ++i) {
      KVM_REQUIRE_OK(add(first));
      KVM_REQUIRE_OK(add(second));
    }
    CHECK(descriptors.kept() == 64);
    KVM_CHECK_ERROR(add(first), Errc::kResourceExhausted, "LimitNOFILE");
    KVM_CHECK_ERROR(add(second), Errc::kResourceExhausted, "all domains");
  }
  CHECK(descriptors.kept() == 32);
  KVM_REQUIRE_OK(add(first));
  CHECK(descriptors.kept() == 34);
}

TEST_CASE("Registry: regions are refused with the reason named", "[unit]") {
  Config config = Small(128);
  config.max_regions_per_client = 2;
  config.max_blocks_per_client = 100;
  config.max_fds_per_client = 5;
  Registry registry(config);
  WireRegion region("pool", LlamaSpec(), 8, 64);
  KVM_REQUIRE_OK(registry.Register(1, region));
  const auto refused = [&](WireRegion& other, Errc code, const std::string& text) {
    KVM_CHECK_ERROR(registry.Register(1, other), code, text);
  };

  WireRegion other("other", LlamaSpec(), 8, 128);
  refused(other, Errc::kBadGeometry, "128");  // blocks of another size
  refused(region, Errc::kAlreadyExists, "pool");
  WireRegion large("large", LlamaSpec(), 93, 64);
  refused(large, Errc::kResourceExhausted, "--max-blocks-per-client");
  WireRegion wide("wide", LlamaSpec(), 8, 64);
  const WireRegion second_segment("2", LlamaSpec(), 8, 64), third_segment("3", LlamaSpec(), 8, 64);
  for (int i = 0; i < 2; ++i) *wide.descriptor.add_segments() = wide.descriptor.segments(0);
  KVM_CHECK_ERROR(registry.Register(1, wide, 1000, {second_segment.payload.fd(), third_segment.payload.fd()}), Errc::kResourceExhausted,
                  "--max-fds-per-client");

  WireRegion bad("bad", LlamaSpec(), 8, 64);
  const kvmwire::RegionDescriptor good = bad.descriptor;
  for (const std::string& name : {std::string(), std::string("with space"), std::string("new\nline"), std::string(64, 'x')}) {
    bad.descriptor.set_name(name);
    refused(bad, Errc::kInvalidArgument, "name");
  }
  bad.descriptor = good;
  bad.descriptor.set_fingerprint(std::string(32, 'x'));
  refused(bad, Errc::kNotFound, "model");
  bad.descriptor = good;
  bad.descriptor.set_shard(0, 3);
  refused(bad, Errc::kInvalidArgument, "rank");
  bad.descriptor = good;
  bad.descriptor.set_shard(1, 2);
  refused(bad, Errc::kModelMismatch, "tp_size");
  bad.descriptor = good;
  bad.descriptor.add_shard(1);
  refused(bad, Errc::kInvalidArgument, "shard");
  bad.descriptor = good;
  bad.descriptor.set_handle_kind(17);
  refused(bad, Errc::kUnsupported, "17");
  bad.descriptor = good;
  bad.descriptor.set_handle_kind(2);  // cuda_ipc: a handle, no descriptor
  refused(bad, Errc::kInvalidArgument, "descriptors");
  bad.descriptor = good;
  bad.descriptor.mutable_segments(0)->set_handle(std::string(64, 'h'));
  refused(bad, Errc::kInvalidArgument, "handle");
  bad.descriptor = good;
  bad.descriptor.mutable_segments(0)->set_size_bytes(1 << 20);  // the memfd is smaller
  refused(bad, Errc::kInvalidArgument, "segment 0");
  bad.descriptor = good;
  bad.descriptor.mutable_segments(0)->set_size_bytes(0);
  refused(bad, Errc::kInvalidArgument, "segment 0");
  bad.descriptor = good;
  bad.descriptor.set_block_count(9);
  refused(bad, Errc::kBadGeometry, "ends at byte");
  bad.descriptor = good;
  bad.descriptor.mutable_parts(0)->set_block_stride(~std::uint64_t{0});
  refused(bad, Errc::kBadGeometry, "64 bits");
  bad.descriptor = good;
  bad.descriptor.clear_parts();
  refused(bad, Errc::kBadGeometry, "no parts");
  bad.descriptor = good;
  bad.descriptor.set_device_uuid("short");
  refused(bad, Errc::kInvalidArgument, "device_uuid");
  bad.descriptor = good;
  bad.descriptor.set_block_count(7);  // fits the segment, not the generation table
  refused(bad, Errc::kProtocol, "generation table");
  CHECK(registry.domain->AccountOf(1).regions == 1);

  WireRegion second("second", LlamaSpec(), 8, 64), third("third", LlamaSpec(), 8, 64);
  KVM_REQUIRE_OK(registry.Register(1, second));
  refused(third, Errc::kResourceExhausted, "--max-regions-per-client");
}

}  // namespace
}  // namespace kvm::daemon
