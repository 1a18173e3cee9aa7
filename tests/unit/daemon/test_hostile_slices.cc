// Messages whose work grows with what a client has: an adoption, the end of leases, slabs that are
// closed. Each step of kvmd's thread does one slice of them. Work is counted
// (daemon/system/work_meter.h), time is not. Before they were cut, one step did all of it.
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <set>

#include "tests/support/broker/broker_node.h"
#include "tests/support/broker/counted_work.h"
#include "tests/support/broker/offloading_worker.h"

namespace kvm::test {
namespace {

using daemon::kSliceUnits;
using daemon::WorkUnits;

// What is to be done now and at the next ticks; each tick is a step, too.
Steps WorkOfSomeTicks(Node& node) {
  Steps steps = WorkStepwise(node);
  SteadyTime now = std::chrono::steady_clock::now();
  for (int i = 0; i < 4; ++i) {
    const WorkUnits tick = Cost([&] { node.broker.Tick(now += seconds(2)); });
    const Steps more = WorkStepwise(node);
    steps.worst = std::max({steps.worst, tick, more.worst});
    steps.count += 1 + more.count;
  }
  return steps;
}
// The same of what one message asks for.
Steps HandleStepwise(Node& node, ClientId client, const kvmwire::ClientMessage& message) {
  Steps steps{Cost([&] { KVM_REQUIRE_OK(node.broker.Handle(client, message, {})); }), 1};
  for (; node.broker.Busy(client); ++steps.count) steps.worst = std::max(steps.worst, Cost([&] { node.broker.GoOn(client); }));
  return steps;
}

}  // namespace

TEST_CASE("Hostile: the records of a huge adopted region are written in slices", "[unit]") {
  constexpr std::uint32_t kBlocks = 200'000;
  Node node;
  WireRegion pool("", LlamaSpec(), 1);
  {
    FakeConnection connection;
    const ClientId owner = node.Join(connection);
    pool = node.Granted(owner, connection, "pool", kBlocks, 1);
    node.Register(owner, connection, pool);
    // The last blocks are published, so the list is complete at the end only.
    std::vector<PublishRecord> records;
    for (std::uint32_t block = kBlocks - 100; block < kBlocks; ++block) records.push_back(pool.Write(block, {block, 1}));
    node.Handle(owner, pool.PublishMessage(records));
    node.broker.Leave(owner, true);
  }
  FakeConnection connection;
  const ClientId adopter = node.Join(connection);
  std::vector<WorkUnits> steps{Cost([&] { KVM_REQUIRE_OK(node.broker.Handle(adopter, Node::Adopt(pool), {})); })};
  CHECK(node.broker.Busy(adopter));
  while (node.broker.Busy(adopter)) steps.push_back(Cost([&] { node.broker.GoOn(adopter); }));
  CHECK(steps.size() > kBlocks / kSliceUnits);
  CHECK(*std::max_element(steps.begin(), steps.end()) <= kMostOfStep);
  CHECK(connection.Take(Body::kAdoptRegionReply).message.adopt_region_reply().records() == 100);
}

TEST_CASE("Hostile: a region that goes while its records are written is not adopted", "[unit]") {
  constexpr std::uint32_t kBlocks = 100'000;
  Node node;
  WireRegion pool("", LlamaSpec(), 1);
  {
    FakeConnection connection;
    const ClientId owner = node.Join(connection);
    pool = node.Granted(owner, connection, "pool", kBlocks, 1);
    node.Register(owner, connection, pool);
    std::vector<PublishRecord> records{pool.Write(kBlocks - 1, {1, 1})};
    node.Handle(owner, pool.PublishMessage(records));
    node.broker.Leave(owner, true);
  }
  FakeConnection first_connection, second_connection;
  const ClientId first = node.Join(first_connection), second = node.Join(second_connection);
  KVM_REQUIRE_OK(node.broker.Handle(first, Node::Adopt(pool), {}));
  REQUIRE(node.broker.Busy(first));
  node.Handle(second, Node::Adopt(pool));
  second_connection.Take(Body::kAdoptRegionReply);
  while (node.broker.Busy(first)) node.broker.GoOn(first);
  CheckSays(first_connection.TakeError(), "it belongs to process");
}

TEST_CASE("Hostile: the blocks of a long lease are unpinned in slices, and count until then", "[unit]") {
  constexpr std::uint32_t kBlocks = 9000, kRounds = 8;
  Config config;
  config.max_leased_percent_per_domain = config.max_leased_percent_per_client = 100;
  config.max_leases_per_client = 64;
  config.max_entries = 10'000;
  Node node(config);
  FakeConnection connection;
  const ClientId owner = node.Join(connection);
  WireRegion pool = node.Granted(owner, connection, "pool", kBlocks, 1);
  node.Register(owner, connection, pool);
  std::vector<PublishRecord> records;
  for (std::uint32_t block = 0; block < kBlocks; ++block) records.push_back(pool.Write(block, {block, block * 0x9E37'79B9'7F4A'7C15}));
  for (std::size_t from = 0; from < records.size(); from += kMaxPublishBatch) {
    const std::size_t to = std::min(records.size(), from + kMaxPublishBatch);
    node.Handle(owner, pool.PublishMessage(
                           {records.begin() + static_cast<std::ptrdiff_t>(from), records.begin() + static_cast<std::ptrdiff_t>(to)}));
  }
  node.broker.Leave(owner, true);
  FakeConnection holder_connection;
  const ClientId holder = node.Join(holder_connection);
  std::uint64_t held = 0;
  // Several leases of one client, each of many blocks: as many as its limit allows.
  for (std::uint32_t round = 0; round < kRounds && held < kBlocks; ++round) {
    std::uint64_t lease = 0, of_lease = 0;
    while (of_lease < 3000 && held < kBlocks) {
      kvmwire::ClientMessage message;
      kvmwire::AcquireLease& acquire = *message.mutable_acquire_lease();
      acquire.set_registry_epoch(node.Domain().epoch());
      acquire.set_ttl_ms(60'000);
      acquire.set_lease(lease);
      acquire.set_after(static_cast<std::uint32_t>(of_lease));
      const std::uint64_t end = std::min<std::uint64_t>(std::min<std::uint64_t>(held + kMaxLeaseBatch, kBlocks), held + 3000 - of_lease);
      for (std::uint64_t i = held; i < end; ++i) {
        kvmwire::LeaseSource& source = *acquire.add_sources();
        source.set_region(pool.row);
        source.set_region_epoch(pool.region_epoch);
        source.set_block(records[i].block);
        source.set_generation(records[i].generation);
      }
      node.Handle(holder, message);
      const kvmwire::AcquireLeaseReply reply = holder_connection.Take(Body::kAcquireLeaseReply).message.acquire_lease_reply();
      lease = reply.lease();
      REQUIRE(reply.blocks() == of_lease + (end - held));
      of_lease = reply.blocks();
      held = end;
    }
  }
  REQUIRE(held == kBlocks);
  CHECK(Cost([&] { node.broker.Leave(holder, true); }) <= kMostOfStep);
  CHECK(node.Domain().leased_blocks() > 0);
  const Steps steps = WorkStepwise(node);
  CHECK(steps.worst <= kMostOfStep);
  CHECK(node.Domain().leased_blocks() == 0);
}

// Where Lessor::CutOff takes the blocks off all leases itself, it is one step.
TEST_CASE("Hostile: leases of a region that many leases cover lose its blocks in slices", "[unit]") {
  constexpr std::uint32_t kLeases = 4000;
  Config config;
  config.max_leased_percent_per_domain = config.max_leased_percent_per_client = 100;
  config.max_leases_per_client = config.max_leases_per_user = kLeases + 1;
  Node node(config);
  WireRegion pool("", LlamaSpec(), 1), other("", LlamaSpec(), 1);
  std::vector<PublishRecord> records;
  {
    FakeConnection connection;
    const ClientId owner = node.Join(connection);
    for (WireRegion* region : {&pool, &other}) {
      *region = node.Granted(owner, connection, region == &pool ? "pool" : "other", 2);
      node.Register(owner, connection, *region);
      for (std::uint32_t block = 0; block < 2; ++block) records.push_back(region->Write(block, {records.size(), 1}));
      node.Handle(owner, region->PublishMessage({records.end() - 2, records.end()}));
    }
    node.broker.Leave(owner, true);
  }
  FakeConnection holder_connection;
  const ClientId holder = node.Join(holder_connection);
  const std::uint64_t epoch = node.Domain().epoch();
  const auto hold = [&](std::initializer_list<std::size_t> blocks) {
    kvmwire::ClientMessage message;
    kvmwire::AcquireLease& acquire = *message.mutable_acquire_lease();
    acquire.set_registry_epoch(epoch);
    acquire.set_ttl_ms(60'000);
    for (const std::size_t i : blocks) {
      kvmwire::LeaseSource& source = *acquire.add_sources();
      source.set_region(i < 2 ? pool.row : other.row);
      source.set_region_epoch(i < 2 ? pool.region_epoch : other.region_epoch);
      source.set_block(records[i].block);
      source.set_generation(records[i].generation);
    }
    node.Handle(holder, message);
    return holder_connection.Take(Body::kAcquireLeaseReply).message.acquire_lease_reply().lease();
  };
  const std::uint64_t stays = hold({2, 3});
  std::uint64_t last = 0;
  for (std::uint32_t i = 0; i < kLeases; ++i) last = hold({2, 0});
  FakeConnection connection;
  const ClientId adopter = node.Join(connection);
  CHECK(Cost([&] { node.Handle(adopter, Node::Adopt(pool)); }) <= kMostOfStep);
  connection.Take(Body::kAdoptRegionReply);
  const auto told = [&] {
    return std::count_if(holder_connection.sent.begin(), holder_connection.sent.end(),
                         [](const Received& one) { return one.message.has_lease_shrunk(); });
  };
  CHECK(told() > 0);
  CHECK(told() < kLeases / 2);
  // A lease that ends meanwhile loses nothing.
  kvmwire::ClientMessage release;
  release.mutable_release_lease()->set_lease(last);
  node.Handle(holder, release);
  const Steps steps = WorkStepwise(node);
  CHECK(steps.worst <= kMostOfStep);
  CHECK(steps.count > 2);
  CHECK(told() == kLeases - 1);
  for (const Received& one : holder_connection.sent) {
    if (one.message.has_lease_shrunk() && (one.message.lease_shrunk().blocks() != 1 || one.message.lease_shrunk().lease() == stays))
      FAIL("lease " << one.message.lease_shrunk().lease() << " has " << one.message.lease_shrunk().blocks() << " blocks left");
  }
  CHECK(node.Domain().leased_blocks() == 2 + kLeases - 1);
}

// Without the budget in SlabPool::CloseUnwanted the message closes all nine slabs: seen.
TEST_CASE("Hostile: slabs of another block size are closed and emptied in slices", "[unit]") {
  constexpr std::uint32_t kSlabs = 9;
  constexpr std::uint64_t kBytes = std::uint64_t{4} << 20, kBlock = 4096;
  Config config;
  config.host_cache_slab_bytes = kBytes;
  config.host_cache_bytes = kSlabs * kBytes;
  config.orphan_ttl_s = 0;
  Node node(config);
  OffloadingWorker worker(node, "hoarder", 1000, kSlabs * kBytes / kBlock, kBlock);
  for (std::uint32_t from = 0; from < kSlabs * kBytes / kBlock; from += kMaxStoreBatch / 2) {
    std::vector<PublishRecord> records = worker.Write(from, from + kMaxStoreBatch / 2);
    for (PublishRecord& record : records) record.key.hi = record.block * 0x9E37'79B9'7F4A'7C15;
    while (!records.empty()) {
      const kvmwire::PrepareStoreReply reply = worker.Offer(records, true);
      REQUIRE(reply.decided() > 0);
      worker.Done(reply);
      records.erase(records.begin(), records.begin() + reply.decided());
    }
  }
  REQUIRE(node.Domain().host_cache().bytes() == kSlabs * kBytes);
  node.Handle(worker.id, worker.region.UnregisterMessage());
  node.WorkAll();
  WireRegion other("other", LlamaSpec(), 8, 2 * kBlock);
  const WorkUnits first = Cost([&] { node.Register(worker.id, worker.connection, other); });
  CHECK(first <= kSliceUnits + kSliceUnits / 4);  // and the slab that had begun
  const Steps steps = WorkOfSomeTicks(node);
  CHECK(node.Domain().host_cache().bytes() == 0);
  CHECK(steps.worst <= 2 * kSliceUnits);
}

TEST_CASE("Hostile: the memory of one large slab that was closed is given back in slices", "[unit]") {
  constexpr std::uint64_t kBytes = std::uint64_t{192} << 20, kBlock = 65536;
  Config config;
  config.host_cache_slab_bytes = config.host_cache_bytes = kBytes;
  config.orphan_ttl_s = 0;
  Node node(config);
  OffloadingWorker worker(node, "hoarder", 1000, 8, kBlock);
  const kvmwire::PrepareStoreReply reply = worker.Offer(worker.Write(0, 4), true);
  REQUIRE(reply.grants_size() == 4);
  worker.Done(reply);
  REQUIRE(node.Domain().host_cache().bytes() == kBytes);
  node.Handle(worker.id, worker.region.UnregisterMessage());
  node.WorkAll();
  WireRegion other("other", LlamaSpec(), 8, 2 * kBlock);
  node.Register(worker.id, worker.connection, other);
  const Steps steps = WorkOfSomeTicks(node);
  CHECK(node.Domain().host_cache().bytes() == 0);
  CHECK(steps.worst <= kMostOfStep);
}

// As many workers as slabs, which are full of blocks that are being stored.
struct FullCache {
  static constexpr std::uint32_t kSlabs = 36, kSlotsOfSlab = 256;
  static constexpr std::uint64_t kBlock = 512;

  FullCache() {
    for (std::uint32_t i = 0; i < kSlabs; ++i) {
      workers.push_back(std::make_unique<OffloadingWorker>(node, "worker-" + std::to_string(i), 1000, 2 * kSlotsOfSlab, kBlock));
      kvmwire::PrepareStoreReply& all = granted.emplace_back();
      // An offer may be more than a slice.
      for (std::vector<PublishRecord> records = First(i); !records.empty();) {
        const kvmwire::PrepareStoreReply reply = workers[i]->Offer(records, true);
        REQUIRE(reply.decided() > 0);
        all.mutable_grants()->MergeFrom(reply.grants());
        records.erase(records.begin(), records.begin() + reply.decided());
      }
      REQUIRE(all.grants_size() == static_cast<int>(kSlotsOfSlab));
    }
  }
  static Config Options() {
    Config config;
    config.host_cache_slab_bytes = kSlotsOfSlab * kBlock;
    config.host_cache_bytes = kSlabs * config.host_cache_slab_bytes;
    config.max_host_cache_per_client = config.host_cache_slab_bytes;
    config.orphan_ttl_s = 0;
    return config;
  }
  std::vector<PublishRecord> First(std::uint32_t i) { return workers[i]->Write(0, kSlotsOfSlab, i + 1); }
  std::vector<PublishRecord> Second(std::uint32_t i) { return workers[i]->Write(kSlotsOfSlab, 2 * kSlotsOfSlab, i + 1); }
  bool Answered(std::uint32_t i) const { return workers[i]->connection.Has(Body::kPrepareStoreReply); }

  Node node{Options()};
  std::vector<std::unique_ptr<OffloadingWorker>> workers;
  std::vector<kvmwire::PrepareStoreReply> granted;
};

// Without the budget in HostCache::Offer one offer costs five slices: seen.
TEST_CASE("Hostile: an offer of many blocks to a cache of many slabs is decided up to a slice", "[unit]") {
  FullCache cache;
  cache.workers[0]->Done(cache.granted[0]);
  const std::vector<PublishRecord> records = cache.Second(0);
  CHECK(Cost([&] { cache.workers[0]->Send(records, true); }) <= kMostOfStep);
  const kvmwire::PrepareStoreReply reply = cache.workers[0]->connection.Take(Body::kPrepareStoreReply).message.prepare_store_reply();
  CHECK(reply.decided() > 0);
  CHECK(reply.decided() < records.size());
}

// Without the budget in OffloadService::AnswerWaiting one step answers all 36 offers: seen.
TEST_CASE("Hostile: offers that have waited for room are answered in slices", "[unit]") {
  FullCache cache;
  for (std::uint32_t i = 0; i < FullCache::kSlabs; ++i) {
    cache.workers[i]->Send(cache.Second(i), true);
    REQUIRE_FALSE(cache.Answered(i));
  }
  for (std::uint32_t i = 0; i < FullCache::kSlabs; ++i)
    cache.node.Handle(cache.workers[i]->id, OffloadingWorker::DoneMessage(cache.granted[i]));
  const Steps steps = WorkStepwise(cache.node);
  CHECK(steps.worst <= 2 * kSliceUnits);
  CHECK(steps.count > static_cast<int>(FullCache::kSlabs / 2));
  for (std::uint32_t i = 0; i < FullCache::kSlabs; ++i) CHECK(cache.Answered(i));
}

// Without the budget in OrphanService::AnswerWaiting one tick makes memory for all of them: seen.
TEST_CASE("Hostile: requests for memory that become due at the same moment are answered in slices", "[unit]") {
  constexpr int kRequests = 6;
  Node node;
  FakeConnection importer_connection, owner_connection;
  node.Join(importer_connection);  // it does not unmap what it is asked to
  const ClientId owner = node.Join(owner_connection);
  std::vector<WireRegion> pools;
  for (int i = 0; i < kRequests; ++i) {
    pools.push_back(node.Granted(owner, owner_connection, "pool-" + std::to_string(i), 8));
    node.Register(owner, owner_connection, pools.back());
  }
  node.broker.Leave(owner, true);
  node.WorkAll();
  std::vector<std::unique_ptr<FakeConnection>> connections;
  for (const WireRegion& pool : pools) {
    connections.push_back(std::make_unique<FakeConnection>());
    const ClientId client = node.Join(*connections.back());
    kvmwire::ClientMessage message;
    kvmwire::AllocateMemory& request = *message.mutable_allocate_memory();
    for (std::size_t i = 0; i < kMaxFrameFds; ++i) request.add_size_bytes(4096);
    *request.mutable_for_region() = pool.descriptor;
    request.set_ack_timeout_ms(1000);
    node.Handle(client, message);
  }
  node.WorkAll();
  const auto answered = [&] {
    return std::count_if(connections.begin(), connections.end(), [](const auto& one) { return one->Has(Body::kReclaimReply); });
  };
  REQUIRE(answered() == 0);
  const SteadyTime late = std::chrono::steady_clock::now() + seconds(10);
  WorkUnits worst = 0;
  for (int tick = 0; tick < kRequests && answered() < kRequests; ++tick) {
    worst = std::max(worst, Cost([&] { node.broker.Tick(late); }));
  }
  CHECK(answered() == kRequests);
  CHECK(worst <= 3 * kSliceUnits);  // a request that begins as the slice ends is one of its own
}

// A client with about 1,000 entries whose keys share one place, so that each costs the more to find
// the later it came.
struct Crowd {
  static constexpr std::uint32_t kBlocks = 4096;

  Crowd() : client(node.Join(connection)), region("crowd", LlamaSpec(), kBlocks, 64) {
    node.Register(client, connection, region);
    std::vector<PublishRecord> records;
    for (std::uint32_t block = 0; block < kBlocks; ++block) records.push_back(region.Write(block, {block, 12345}));
    node.Handle(client, region.PublishMessage(records));
    REQUIRE(node.Domain().entries() > 500);
  }

  Node node;
  FakeConnection connection;
  ClientId client;
  WireRegion region;
};

// Without the budget in EntryTable::Reap one step drops all of them: seen.
TEST_CASE("Hostile: entries whose keys share a place leave with their region in slices", "[unit]") {
  Crowd crowd;
  crowd.node.Handle(crowd.client, crowd.region.UnregisterMessage());
  const Steps steps = WorkStepwise(crowd.node);
  CHECK(crowd.node.Domain().entries() == 0);
  CHECK(steps.count > 10);
  CHECK(steps.worst <= 2 * kSliceUnits);
}

// Without the budget in EntryTable::Retract one message drops all of them: seen.
TEST_CASE("Hostile: rewritten blocks whose keys share a place are retracted in slices", "[unit]") {
  Crowd crowd;
  kvmwire::ClientMessage message;
  message.mutable_retract()->set_region(crowd.region.row);
  message.mutable_retract()->set_region_epoch(crowd.region.region_epoch);
  for (std::uint32_t block = 0; block < Crowd::kBlocks; ++block) {
    crowd.region.generations.BeginWrite(block);
    message.mutable_retract()->add_blocks(block);
  }
  const Steps steps = HandleStepwise(crowd.node, crowd.client, message);
  CHECK(crowd.node.Domain().entries() == 0);
  CHECK(steps.count > 10);
  CHECK(steps.worst <= 2 * kSliceUnits);
}

// Without the budget in HostCache::Done one message indexes all of them: seen.
TEST_CASE("Hostile: blocks whose keys share a place are stored in slices", "[unit]") {
  constexpr std::uint32_t kBlocks = kMaxStoreBatch;
  constexpr std::uint64_t kBlock = 512;
  Config config;
  config.host_cache_slab_bytes = config.host_cache_bytes = kBlocks * kBlock;
  config.orphan_ttl_s = 0;
  Node node(config);
  OffloadingWorker worker(node, "crowd", 1000, kBlocks, kBlock);
  std::vector<PublishRecord> records = worker.Write(0, kBlocks);
  kvmwire::PrepareStoreReply granted;
  while (!records.empty()) {
    const kvmwire::PrepareStoreReply reply = worker.Offer(records, true);
    REQUIRE(reply.decided() > 0);
    for (const kvmwire::StoreGrant& grant : reply.grants()) *granted.add_grants() = grant;
    records.erase(records.begin(), records.begin() + reply.decided());
  }
  REQUIRE(granted.grants_size() == static_cast<int>(kBlocks));
  const Steps steps = HandleStepwise(node, worker.id, OffloadingWorker::DoneMessage(granted));
  CHECK(node.Domain().host_cache().blocks() > 500);
  CHECK(steps.count > 10);
  CHECK(steps.worst <= 2 * kSliceUnits);
}

// Without the budget in MarkTable::Expire one tick ends all of them: seen.
TEST_CASE("Hostile: marks that expire at the same moment end in slices", "[unit]") {
  Node node(With(&Config::max_marked_keys_per_client, 65'535u));
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  for (std::uint64_t mark = 1; mark <= 40; ++mark) {
    std::vector<BlockKey> keys;
    for (std::uint64_t i = 0; i < 1000; ++i)
      keys.push_back({(1000 * mark + i) * 0x9E37'79B9'7F4A'7C15, (1000 * mark + i) * 0xD134'2543'DE82'EF95});
    kvmwire::ClientMessage message;
    message.mutable_mark_computing()->set_mark(mark);
    message.mutable_mark_computing()->set_ttl_ms(1000);
    message.mutable_mark_computing()->set_keys(keys.data(), keys.size() * sizeof(BlockKey));
    node.Handle(client, message);
  }
  const auto marked = [&] { return node.broker.domains().Find("uid-1000")->marks().size(); };
  REQUIRE(marked() > 5000);
  const SteadyTime late = std::chrono::steady_clock::now() + seconds(10);
  Steps steps;
  for (; marked() > 0 && steps.count < 100; ++steps.count) steps.worst = std::max(steps.worst, Cost([&] { node.broker.Tick(late); }));
  CHECK(marked() == 0);
  CHECK(steps.count > 2);
  CHECK(steps.worst <= kMostOfStep);
}

// Where RegionTable does not count the rows that it looks at, each costs less than 300: seen.
TEST_CASE("Hostile: messages for which all rows of a large table of regions are looked at count them", "[unit]") {
  constexpr std::uint32_t kRows = 20'000;
  Node node(With(&Config::max_regions, kRows));
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  WireRegion pool("pool", LlamaSpec(), 1), none("none", LlamaSpec(), 1);
  CHECK(Cost([&] { node.Register(client, connection, pool); }) >= kRows);
  CHECK(Cost([&] { node.Handle(client, Node::Adopt(none)); }) >= kRows);
  CHECK(Cost([&] { node.broker.Leave(client, true); }) >= kRows);
}

// Without the budget in EntryTable::Sweep one sweep drops all of them: seen.
TEST_CASE("Hostile: rewritten entries whose keys share a place are swept in slices", "[unit]") {
  Crowd crowd;
  for (std::uint32_t block = 0; block < Crowd::kBlocks; ++block) crowd.region.generations.BeginWrite(block);
  WorkUnits worst = 0, all = 0;
  for (int sweep = 0; sweep < 1000 && crowd.node.Domain().entries() > 0; ++sweep) {
    const WorkUnits cost = Cost([&] { crowd.node.broker.Sweep(); });
    worst = std::max(worst, cost);
    all += cost;
  }
  CHECK(crowd.node.Domain().entries() == 0);
  CHECK(all > 10 * kSliceUnits);  // or the case shows nothing
  CHECK(worst <= Config().sweep_slots + 2 * kSliceUnits);
}

// Without the budget in StatusAnswer::GoOn one message describes all of them: seen.
TEST_CASE("Hostile: a status of many clients is made in slices, and has each that stays once", "[unit]") {
  constexpr std::size_t kClients = 1500;
  Node node;
  std::vector<std::unique_ptr<FakeConnection>> connections;
  std::vector<ClientId> ids;
  for (std::size_t i = 0; i < kClients; ++i) {
    connections.push_back(std::make_unique<FakeConnection>());
    ids.push_back(node.Join(*connections.back()));
  }
  kvmwire::ClientMessage message;
  message.set_request_id(7);
  message.mutable_status_query()->set_clients(true);
  std::vector<WorkUnits> steps{Cost([&] { KVM_REQUIRE_OK(node.broker.Handle(ids[0], message, {})); })};
  REQUIRE(node.broker.Busy(ids[0]));
  // One that is in the list already, and one that is not yet.
  node.broker.Leave(ids[1], true);
  node.broker.Leave(ids.back(), true);
  while (node.broker.Busy(ids[0])) steps.push_back(Cost([&] { node.broker.GoOn(ids[0]); }));
  CHECK(steps.size() >= 3);
  CHECK(*std::max_element(steps.begin(), steps.end()) <= kMostOfStep);
  const kvmwire::StatusReply reply = connections[0]->Take(Body::kStatusReply).message.status_reply();
  CHECK_FALSE(reply.lists_cut());
  std::set<ClientId> listed;
  for (const kvmwire::ClientStatus& client : reply.client_list()) listed.insert(client.client_id());
  CHECK(listed.size() == static_cast<std::size_t>(reply.client_list_size()));
  CHECK(listed.size() == kClients - 1);
}

}  // namespace kvm::test
