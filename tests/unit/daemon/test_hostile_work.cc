// What hostile clients cost the others: how much work kvmd does before an honest bystander of
// another user is served. Work is counted (daemon/system/work_meter.h), time is not, so the figures
// are the same on any machine.
//
// What each case is against: messages worked on as a whole, turns by connection, every slot
// searched, one wait for the service manager after the other.
#include <sys/stat.h>

#include <memory>
#include <set>

#include "daemon/host_cache/slot_table.h"
#include "daemon/server/fair_turns.h"
#include "tests/catch.h"
#include "tests/support/broker/offloading_worker.h"
#include "tests/support/broker/slow_manager.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {
namespace {

using daemon::FairTurns;
using daemon::kSliceUnits;
using daemon::WorkBudget;
using daemon::WorkMeter;
using daemon::WorkUnits;

constexpr std::uint32_t kAttacker = 2001, kBystander = 2002;
// A slice that has begun, a slice of the others', and what can't be cut.
constexpr WorkUnits kMostBefore = 4 * kSliceUnits;

// A broker whose clients have turns, as the server gives them.
struct BusyNode : Node {
  explicit BusyNode(const Config& config = {}) : Node(config) { bystander = Join(connection, kDeadPid, kBystander); }

  void Queue(ClientId client, kvmwire::ClientMessage message, std::uint32_t uid = kAttacker) {
    turns.Add(uid, [this, client, message = std::move(message), begun = false](const WorkBudget& budget) mutable {
      if (!std::exchange(begun, true)) KVM_REQUIRE_OK(broker.Handle(client, std::move(message), {}));
      while (broker.Busy(client) && !budget.used_up()) broker.GoOn(client);
      return broker.Busy(client);
    });
  }
  // Work until a ping of the bystander's is answered.
  WorkUnits Ping() {
    kvmwire::ClientMessage ping;
    ping.mutable_ping();
    Queue(bystander, ping, kBystander);
    const WorkUnits before = WorkMeter::spent();
    while (!connection.Has(Body::kEmpty)) turns.Run();
    connection.Take(Body::kEmpty);
    return WorkMeter::spent() - before;
  }
  // The most work that a ping waited for, until the others are done; and how much that was in all.
  void PingUntilDone(WorkUnits& worst, WorkUnits& all) {
    worst = 0;
    const WorkUnits before = WorkMeter::spent();
    while (turns.waiting() > 0) worst = std::max(worst, Ping());
    all = WorkMeter::spent() - before;
  }

  FairTurns turns{[] {}};
  FakeConnection connection;
  ClientId bystander = 0;
};

// A worker of the attacker's that stores chains in the host cache.
struct Chain {
  Chain(BusyNode& its_node, std::uint32_t blocks) : node(its_node), worker(its_node, "chain", kAttacker, blocks, 64) {
    std::vector<PublishRecord> records = worker.Write(0, blocks);
    for (std::uint32_t block = 0; block < blocks; ++block) {
      records[block].depth = block;
      records[block].key.hi = block * 0x9E37'79B9'7F4A'7C15;  // its place in the index
    }
    while (!records.empty()) {
      const std::size_t count = std::min<std::size_t>(records.size(), kMaxStoreBatch);
      const kvmwire::PrepareStoreReply reply = worker.Offer({records.begin(), records.begin() + static_cast<std::ptrdiff_t>(count)}, true);
      REQUIRE(reply.decided() > 0);
      for (const kvmwire::StoreGrant& grant : reply.grants()) grants.push_back(grant);
      worker.Done(reply);
      records.erase(records.begin(), records.begin() + reply.decided());
    }
    REQUIRE(grants.size() == blocks);
  }
  // `runs` that end in the last block, or each one block before the one before.
  kvmwire::ClientMessage Use(std::size_t runs, bool same_end) const {
    kvmwire::ClientMessage message;
    for (std::size_t i = 0; i < runs; ++i) {
      const kvmwire::StoreGrant& end = grants[grants.size() - 1 - (same_end ? 0 : i)];
      kvmwire::HostCacheRun& run = *message.mutable_host_cache_use()->add_runs();
      run.set_region(end.region());
      run.set_region_epoch(end.region_epoch());
      run.set_slot(end.slot());
      run.set_blocks(1);
    }
    return message;
  }

  BusyNode& node;
  OffloadingWorker worker;
  std::vector<kvmwire::StoreGrant> grants;
};

Config SmallCache() {
  Config config;
  config.host_cache_bytes = 16 << 20;
  config.host_cache_slab_bytes = 1 << 20;
  return config;
}

TEST_CASE("Hostile: publishes whose keys share a place are cut into slices", "[unit]") {
  BusyNode node;
  std::vector<std::unique_ptr<FakeConnection>> connections;
  for (std::uint64_t i = 0; i < 3; ++i) {
    connections.push_back(std::make_unique<FakeConnection>());
    const ClientId client = node.Join(*connections.back(), kDeadPid, kAttacker);
    WireRegion region("pool-" + std::to_string(i), LlamaSpec(), 4096, 64);
    node.Register(client, *connections.back(), region);
    std::vector<PublishRecord> records;
    for (std::uint32_t block = 0; block < 4096; ++block) records.push_back(region.Write(block, {i << 32 | block, 12345}));
    node.Queue(client, region.PublishMessage(records));
  }
  WorkUnits worst = 0, all = 0;
  node.PingUntilDone(worst, all);
  CHECK(all > 100 * kSliceUnits);  // or the case shows nothing
  CHECK(worst <= kMostBefore);
  for (const auto& connection : connections) {
    const kvmwire::PublishAck ack = connection->Take(Body::kPublishAck).message.publish_ack();
    CHECK(ack.inserted() + ack.refused_full() == 4096);
  }
}

TEST_CASE("Hostile: a message that names one chain 256 times has it told once", "[unit]") {
  BusyNode node(SmallCache());
  Chain chain(node, 4096);
  const WorkUnits before = WorkMeter::spent();
  node.Handle(chain.worker.id, chain.Use(kMaxHostCacheRuns, /*same_end=*/true));
  CHECK(WorkMeter::spent() - before > 4096);  // or it was not told at all
  CHECK(WorkMeter::spent() - before < 6 * 4096);
}

TEST_CASE("Hostile: a message that names 256 long chains is told in slices", "[unit]") {
  BusyNode node(SmallCache());
  Chain chain(node, 4096);
  node.Queue(chain.worker.id, chain.Use(kMaxHostCacheRuns, /*same_end=*/false));
  WorkUnits worst = 0, all = 0;
  node.PingUntilDone(worst, all);
  CHECK(all > 100 * kSliceUnits);
  CHECK(worst <= kMostBefore);
}

TEST_CASE("Hostile: that nothing may leave is known without a look at any slot", "[unit]") {
  for (const policy::PolicyKind kind : policy::kAllPolicies) {
    INFO(policy::PolicyName(kind));
    constexpr std::uint32_t kManySlots = 3 * policy::kMaxVictimsLookedAt;
    daemon::FreeNow freer;
    daemon::SlotTable blocks(kind, kManySlots, 4, freer);
    std::vector<std::uint32_t> slabs{blocks.AddSlab(), blocks.AddSlab()};
    const auto fill = [&](std::uint32_t slab, bool stored) {
      std::vector<policy::Slot> slots;
      for (std::uint64_t i = 0; i < kManySlots; ++i) {
        PublishRecord record;
        record.key = {slab * 100'000 + i + 1, i};
        const std::optional<policy::Slot> slot = blocks.Grant(slab, record);
        REQUIRE(slot.has_value());
        stored ? blocks.Commit(*slot) : blocks.Expire(*slot);
        if (stored) slots.push_back(*slot);
      }
      blocks.Use(slots, 1000, false);
      return slots;
    };
    fill(slabs[0], false);  // granted, and never answered for
    const std::vector<policy::Slot> pinned = fill(slabs[1], true);
    for (const policy::Slot slot : pinned) REQUIRE(blocks.Pin(slot));
    WorkUnits before = WorkMeter::spent();
    for (int i = 0; i < 1024; ++i) REQUIRE_FALSE(blocks.ChooseVictim(slabs, {}).has_value());
    CHECK(WorkMeter::spent() - before <= 1024 * 4);
    // One that may: it is found, however many may not, and wherever the policy has it in its order.
    const policy::Slot free = pinned[kManySlots / 2];
    blocks.Unpin(free);
    before = WorkMeter::spent();
    CHECK(blocks.ChooseVictim(slabs, {}) == free);
    CHECK(WorkMeter::spent() - before <= 3 * policy::kMaxVictimsLookedAt + 4);
  }
}

TEST_CASE("Hostile: memory of 129 pieces a message is given out one message a turn", "[unit]") {
  BusyNode node;
  std::vector<std::unique_ptr<FakeConnection>> connections;
  kvmwire::ClientMessage message;
  for (std::size_t i = 0; i < kMaxFrameFds; ++i) message.mutable_allocate_memory()->add_size_bytes(1);
  for (int i = 0; i < 4; ++i) {
    connections.push_back(std::make_unique<FakeConnection>());
    const ClientId client = node.Join(*connections.back(), kDeadPid, kAttacker);
    for (int j = 0; j < 4; ++j) node.Queue(client, message);
  }
  WorkUnits worst = 0, all = 0;
  node.PingUntilDone(worst, all);
  CHECK(all > 12 * kSliceUnits);
  CHECK(worst <= kMostBefore);
}

TEST_CASE("Hostile: a region of many segments is announced to many clients in slices, and to each once", "[unit]") {
  BusyNode node;
  std::vector<std::unique_ptr<FakeConnection>> connections;
  constexpr int kClients = 200;
  for (int i = 0; i < kClients; ++i) {
    connections.push_back(std::make_unique<FakeConnection>());
    node.Join(*connections.back(), kDeadPid, kAttacker);
  }
  FakeConnection connection;
  const ClientId owner = node.Join(connection, kDeadPid, kAttacker);
  WireRegion region("wide", LlamaSpec(), 8, 64);
  std::vector<int> fds = region.fds();
  std::vector<OwnedMemory> more;
  for (int i = 0; i < 100; ++i) {
    *region.descriptor.add_segments() = region.descriptor.segments(0);
    Result<OwnedMemory> memory = OwnedMemory::Create("segment", region.descriptor.segments(0).size_bytes());
    KVM_REQUIRE_OK(memory);
    fds.push_back(memory->fd());
    more.push_back(std::move(*memory));
  }
  const auto told = [&] {
    return std::count_if(connections.begin(), connections.end(), [](const auto& one) { return one->Has(Body::kRegionAnnounce); });
  };
  const WorkUnits before = WorkMeter::spent();
  node.Handle(owner, region.RegisterMessage(), fds);
  CHECK(WorkMeter::spent() - before <= kMostBefore);
  CHECK(told() < kClients / 2);
  for (bool left = true; left;) {
    const WorkUnits before_step = WorkMeter::spent();
    left = node.broker.Work();
    CHECK(WorkMeter::spent() - before_step <= 2 * kSliceUnits);
  }
  CHECK(told() == kClients);
  for (const auto& one : connections) {
    one->Take(Body::kRegionAnnounce);
    CHECK_FALSE(one->Has(Body::kRegionAnnounce));
  }
}

// Where RegionAnnouncer::Withdraw tells all at once, one message costs as many sends as there are
// importers, and the end of one client as many as it has regions times importers: seen.
TEST_CASE("Hostile: the end of regions that many clients know is told in slices, and to each once", "[unit]") {
  BusyNode node;
  std::vector<std::unique_ptr<FakeConnection>> connections;
  constexpr std::size_t kClients = 1000, kRegions = 8;
  for (std::size_t i = 0; i < kClients; ++i) {
    connections.push_back(std::make_unique<FakeConnection>());
    node.Join(*connections.back(), kDeadPid, kAttacker);
  }
  FakeConnection connection;
  const ClientId owner = node.Join(connection, kDeadPid, kAttacker);
  std::vector<std::unique_ptr<WireRegion>> regions;
  for (std::size_t i = 0; i < kRegions; ++i) {
    regions.push_back(std::make_unique<WireRegion>("pool-" + std::to_string(i), LlamaSpec(), 8, 64));
    node.Handle(owner, regions.back()->RegisterMessage(), regions.back()->fds());
    while (node.broker.Work()) continue;
    for (const auto& one : connections)
      one->sent.erase(std::remove_if(one->sent.begin(), one->sent.end(),
                                     [](const Received& each) { return each.message.body_case() == Body::kRegionAnnounce; }),
                      one->sent.end());
  }
  const auto told = [&] {
    std::size_t count = 0;
    for (const auto& one : connections)
      count += static_cast<std::size_t>(std::count_if(
          one->sent.begin(), one->sent.end(), [](const Received& each) { return each.message.body_case() == Body::kRegionWithdraw; }));
    return count;
  };
  const WorkUnits before = WorkMeter::spent();
  node.broker.Leave(owner, true);
  CHECK(WorkMeter::spent() - before <= kMostBefore);
  CHECK(told() < kClients * kRegions / 2);
  CHECK(node.Domain().regions() == 0);
  for (bool left = true; left;) {
    const WorkUnits before_step = WorkMeter::spent();
    left = node.broker.Work();
    CHECK(WorkMeter::spent() - before_step <= 3 * kSliceUnits);
  }
  CHECK(told() == kClients * kRegions);
}

TEST_CASE("Hostile: memory of a slab that was closed is the machine's again, also while a client keeps a descriptor", "[unit]") {
  Node node(CacheOf(4));
  OffloadingWorker worker(node, "hoarder");
  REQUIRE(worker.PrepareStore(worker.Write(0, 4)) == 4);
  const Received grant = worker.connection.Take(Body::kSlabGrant);
  REQUIRE(grant.fds.size() == 1);
  struct stat info {};
  REQUIRE(::fstat(grant.fds[0].get(), &info) == 0);
  CHECK(static_cast<std::uint64_t>(info.st_blocks) * 512 >= kSlab);
  // Blocks of another size take the place of those that are stored.
  kvmwire::ClientMessage unregister = worker.region.UnregisterMessage();
  node.Handle(worker.id, unregister);
  node.WorkAll();
  WireRegion other("other", LlamaSpec(), 8, 2 * kBlockBytes);
  node.Register(worker.id, worker.connection, other);
  SteadyTime now = std::chrono::steady_clock::now();
  for (int i = 0; i < 4; ++i) {
    node.broker.Tick(now += seconds(1));
    node.WorkAll();
  }
  REQUIRE(::fstat(grant.fds[0].get(), &info) == 0);
  CHECK(info.st_blocks == 0);
}

TEST_CASE("Hostile: regions that come and go while the service manager does not listen leave nothing to be told", "[unit]") {
  SlowManager manager;
  Node node({}, manager.store.get());
  FakeConnection connection;
  const ClientId client = node.Join(connection, kDeadPid, kAttacker);
  manager.StopListening(kAttacker);
  const std::size_t waiting = manager.manager.queue().waiting();
  for (int i = 0; i < 50; ++i) {
    WireRegion region("pool", LlamaSpec(), 8);
    node.Register(client, connection, region);
    CHECK(manager.manager.queue().waiting() > waiting);
    node.Handle(client, region.UnregisterMessage());
    node.WorkAll();
  }
  CHECK(manager.manager.queue().waiting() == waiting);
}

TEST_CASE("Hostile: a slab is granted once the store knows its writer, and the offer is answered after that", "[unit]") {
  SlowManager manager;
  Node node(CacheOf(4), manager.store.get());
  OffloadingWorker worker(node, "writer");
  manager.StopListening(1000);
  worker.Send(worker.Write(0, 4));
  node.WorkAll();
  node.broker.Tick(std::chrono::steady_clock::now());
  CHECK_FALSE(worker.connection.Has(Body::kSlabGrant));
  CHECK_FALSE(worker.connection.Has(Body::kPrepareStoreReply));
  manager.Hear();
  REQUIRE(worker.connection.Has(Body::kSlabGrant));
  REQUIRE(worker.connection.Has(Body::kPrepareStoreReply));
  const auto at = [&](Body::BodyCase kind) {
    return std::find_if(worker.connection.sent.begin(), worker.connection.sent.end(),
                        [&](const Received& one) { return one.message.body_case() == kind; });
  };
  CHECK(at(Body::kSlabGrant) < at(Body::kPrepareStoreReply));
}

// Where Broker::GiveUp does not wait until the slab's region has gone, its descriptors stay in the
// store, and its memory: seen.
TEST_CASE("Hostile: a domain that is dropped leaves nothing in the service manager's store, and no memory", "[unit]") {
  SlowManager manager;
  Received grant;
  Config config = CacheOf(4);
  config.max_domains = 1;
  Node node(config, manager.store.get());
  {
    OffloadingWorker worker(node, "first", 1000);
    REQUIRE(worker.PrepareStore(worker.Write(0, 4)) == 4);
    grant = worker.connection.Take(Body::kSlabGrant);
    node.Handle(worker.id, worker.region.UnregisterMessage());
    node.WorkAll();
    node.broker.Leave(worker.id, true);
    node.WorkAll();
  }
  const auto of_regions = [&] {
    const std::set<std::string>& stored = manager.Hear();
    return std::count_if(stored.begin(), stored.end(), [](const std::string& name) { return !name.starts_with("kept.registry."); });
  };
  CHECK(of_regions() > 0);
  FakeConnection connection;
  node.Join(connection, kDeadPid, 1001);
  CHECK(of_regions() == 0);
  CHECK(manager.Hear().size() == 1);
  node.WorkAll();
  struct stat info {};
  REQUIRE(::fstat(grant.fds.at(0).get(), &info) == 0);
  CHECK(info.st_blocks == 0);
}

}  // namespace
}  // namespace kvm::test
