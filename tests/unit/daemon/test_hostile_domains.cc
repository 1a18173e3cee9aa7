// Domains that are made for a new user, or go for one: what has the size of a registry or of a
// host cache is made, dropped and freed in slices, or in another thread. Work is counted
// (daemon/system/work_meter.h), time is not.
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "daemon/host_cache/slot_table.h"
#include "tests/support/broker/broker_node.h"
#include "tests/support/broker/counted_work.h"
#include "tests/support/broker/late_freer.h"
#include "tests/support/broker/offloading_worker.h"

namespace kvm::test {
namespace {

using daemon::kSliceUnits;
using daemon::WorkUnits;

// A kvmd whose domains take several slices to be made.
struct LargeDomains {
  static constexpr std::uint64_t kEntries = 400'000;

  explicit LargeDomains(std::uint32_t max_domains = 16, daemon::MemoryFreer* memory_freer = nullptr)
      : config(Of(max_domains)),
        broker(
            config, [] {}, nullptr, nullptr, memory_freer) {}
  static Config Of(std::uint32_t max_domains) {
    Config config;
    config.max_entries = kEntries;
    config.max_domains = max_domains;
    config.log_level = daemon::LogLevel::kError;
    daemon::SetLogLevel(config.log_level);
    return config;
  }
  // Its hello has arrived, and a slice of it is done.
  ClientId Begin(FakeConnection& connection, std::uint32_t uid) {
    const ClientId id = broker.Join(connection, {kDeadPid, uid, uid}, {});
    kvmwire::ClientMessage hello;
    hello.set_request_id(1);
    hello.mutable_hello()->set_protocol_version(kProtocolVersion);
    Count([&] { outcome = broker.Handle(id, hello, {}); });
    return id;
  }
  void GoOn(ClientId id) {
    Count([&] { broker.GoOn(id); });
  }
  template <class Step>
  void Count(Step&& step) {
    const WorkUnits cost = Cost(step);
    worst = std::max(worst, cost);
    all += cost;
  }

  const Config config;
  daemon::Broker broker;
  Status outcome;
  WorkUnits worst = 0, all = 0;  // of hellos
};

// A domain whose host cache has many slabs, all of them full, and whose worker has left.
struct LargeCache {
  static constexpr std::uint32_t kSlabs = 9, kSlabSlots = 1024, kBatch = 512;

  static Config Of() {
    Config config;
    config.host_cache_slab_bytes = kSlabSlots * daemon::SlotTable::kBytesPerSlot;
    config.host_cache_bytes = kSlabs * config.host_cache_slab_bytes;
    // So that it has a filter of what it has seen.
    config.host_cache_admission = daemon::HostCacheAdmission::kSecondHit;
    config.orphan_ttl_s = 0;
    config.max_domains = 1;
    config.max_leased_percent = config.max_leased_percent_per_domain = config.max_leased_percent_per_client = 100;
    config.max_leases_per_client = kSlabs * kSlabSlots;
    return config;
  }

  // `leases`: so many, each of one block, are about to end.
  LargeCache(daemon::MemoryFreer* freer, std::uint32_t leases) : node(Of(), nullptr, nullptr, nullptr, freer) {
    OffloadingWorker worker(node, "writer", 1000, kSlabSlots, daemon::SlotTable::kBytesPerSlot);
    for (std::uint32_t slab = 0; slab < kSlabs; ++slab) {
      for (std::uint32_t from = 0; from < kSlabSlots; from += kBatch) {
        std::vector<PublishRecord> records;
        for (std::uint32_t block = from; block < from + kBatch; ++block) {
          const std::uint64_t key = (slab * kSlabSlots + block + 1) * 0x9E37'79B9'7F4A'7C15;
          records.push_back(worker.region.Write(block, {key, key}));
        }
        // An offer is decided as far as a slice goes.
        for (kvmwire::PrepareStoreReply reply; (reply = worker.Offer(records, /*asked=*/true)).grants_size() > 0;) worker.Done(reply);
      }
    }
    blocks = node.Domain().host_cache().blocks();
    node.Handle(worker.id, worker.region.UnregisterMessage());
    node.WorkAll();
    daemon::Domain& domain = *node.broker.domains().Find("uid-1000");
    domain.ForEachRegion([&](const daemon::Region& slab) {
      for (std::uint32_t block = 0; block < slab.info.block_count && leased < leases; ++block) {
        kvmwire::ClientMessage message;
        kvmwire::AcquireLease& acquire = *message.mutable_acquire_lease();
        acquire.set_registry_epoch(domain.epoch());
        acquire.set_ttl_ms(60'000);
        kvmwire::LeaseSource& source = *acquire.add_sources();
        source.set_region(slab.row);
        source.set_region_epoch(slab.info.region_epoch);
        source.set_block(block);
        source.set_generation(domain.EntryOf(slab, block).generation);
        node.Handle(worker.id, message);
        leased += worker.connection.Take(Body::kAcquireLeaseReply).message.acquire_lease_reply().blocks();
      }
    });
    node.broker.Leave(worker.id, true);
    if (leases == 0) node.WorkAll();
  }

  Node node;
  std::uint64_t blocks = 0, leased = 0;
};

}  // namespace

// Without the budget in RegistrySegment::GoOn the hello is one step.
TEST_CASE("Hostile: the memory of a new domain is made in slices, once for all who wait for it", "[unit]") {
  LargeDomains kvmd;
  FakeConnection first_connection, second_connection;
  const ClientId first = kvmd.Begin(first_connection, 1000);
  REQUIRE(kvmd.broker.Busy(first));
  CHECK(kvmd.broker.Greeted(first));  // so it is not dropped for being late
  CHECK(kvmd.broker.domains().Find("uid-1000") == nullptr);
  const ClientId second = kvmd.Begin(second_connection, 1000);
  while (kvmd.broker.Busy(first) || kvmd.broker.Busy(second)) {
    CHECK(first_connection.sent.empty());
    if (kvmd.broker.Busy(first)) kvmd.GoOn(first);
    if (kvmd.broker.Busy(second)) kvmd.GoOn(second);
  }
  first_connection.Take(Body::kHelloReply);
  second_connection.Take(Body::kHelloReply);
  daemon::Domain* const domain = kvmd.broker.domains().Find("uid-1000");
  REQUIRE(domain != nullptr);
  CHECK(domain->clients == 2);
  struct stat info {};
  REQUIRE(::fstat(domain->segment().fd(), &info) == 0);
  CHECK(static_cast<std::size_t>(info.st_blocks) * 512 >= domain->segment().size());
  CHECK(kvmd.worst <= kMostOfStep + kSliceUnits / 4);  // and the part that had begun
  const WorkUnits pages = domain->segment().size() / 4096;
  CHECK(kvmd.all > 8 * pages);
  CHECK(kvmd.all < 10 * pages);
}

TEST_CASE("Hostile: a client that does not wait for its domain leaves the rest to the next one, or its place", "[unit]") {
  LargeDomains kvmd(1);
  FakeConnection connection, other_connection;
  const ClientId first = kvmd.Begin(connection, 1000);
  REQUIRE(kvmd.broker.Busy(first));
  // While it waits its place is its own.
  kvmd.Begin(other_connection, 1001);
  REQUIRE_FALSE(kvmd.outcome);
  CheckSays(kvmd.outcome.error().message, "(--max-domains)");
  kvmd.broker.Leave(first, true);
  const WorkUnits before = kvmd.all;
  const ClientId next = kvmd.Begin(connection, 1000);
  while (kvmd.broker.Busy(next)) kvmd.GoOn(next);
  connection.Take(Body::kHelloReply);
  const WorkUnits whole = kvmd.broker.domains().Find("uid-1000")->segment().size() / 512;
  CHECK(kvmd.all - before < whole);
  kvmd.broker.Leave(next, true);
  // A domain without clients goes; so does one that was begun.
  const ClientId third = kvmd.Begin(connection, 1001);
  REQUIRE(kvmd.broker.Busy(third));
  CHECK(kvmd.broker.domains().Find("uid-1000") == nullptr);
  kvmd.broker.Leave(third, true);
  const ClientId fourth = kvmd.Begin(connection, 1002);
  while (kvmd.broker.Busy(fourth)) kvmd.GoOn(fourth);
  connection.Take(Body::kHelloReply);
  CHECK(kvmd.broker.domains().Find("uid-1002") != nullptr);
}

// Where Drop and DropUnused leave the memory to its owner, it is freed in their turn, and the
// freer gets none: seen.
TEST_CASE("Hostile: the memory of a domain that is dropped is passed on to be freed, also of one that was begun", "[unit]") {
  LateFreer freer;
  LargeDomains kvmd(1, &freer);
  FakeConnection connection;
  const ClientId first = kvmd.Begin(connection, 1000);
  while (kvmd.broker.Busy(first)) kvmd.GoOn(first);
  const std::size_t size = kvmd.broker.domains().Find("uid-1000")->segment().size();
  kvmd.broker.Leave(first, true);
  const ClientId second = kvmd.Begin(connection, 1001);  // drops it
  CHECK(kvmd.broker.domains().Find("uid-1000") == nullptr);
  REQUIRE(freer.kept.size() == 1);
  CHECK(freer.kept[0].size() == size);
  CHECK(freer.kept[0].data() != nullptr);  // mapped
  REQUIRE(kvmd.broker.Busy(second));
  kvmd.broker.Leave(second, true);
  const ClientId third = kvmd.Begin(connection, 1002);  // drops what was begun
  REQUIRE(freer.kept.size() == 2);
  CHECK(freer.kept[1].size() == size);
  while (kvmd.broker.Busy(third)) kvmd.GoOn(third);
  CHECK(kvmd.worst <= kMostOfStep + kSliceUnits / 4);
  // The count sees what is freed at once.
  LargeDomains at_once(1);
  const ClientId one = at_once.Begin(connection, 1000);
  while (at_once.broker.Busy(one)) at_once.GoOn(one);
  at_once.broker.Leave(one, true);
  at_once.Begin(connection, 1001);
  CHECK(at_once.worst >= size / 1024);
}

// Without the look at MemoryFreer::freeing in DomainTable::Make the hello is refused: seen.
TEST_CASE("Hostile: a new domain for which there is no room waits for memory that is being freed", "[unit]") {
  LateFreer freer;
  LargeDomains kvmd(1, &freer);
  FakeConnection connection;
  const ClientId first = kvmd.Begin(connection, 1000);
  while (kvmd.broker.Busy(first)) kvmd.GoOn(first);
  connection.Take(Body::kHelloReply);
  kvmd.broker.Leave(first, true);
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const rlimit small{1 << 20, before.rlim_max};
  const auto lacking = [&](const auto& step) {
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
    step();
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  };
  ClientId second{};
  lacking([&] { second = kvmd.Begin(connection, 1001); });  // not even begun
  REQUIRE(freer.kept.size() == 1);
  REQUIRE(kvmd.broker.Busy(second));
  kvmd.GoOn(second);
  lacking([&] { kvmd.GoOn(second); });  // in the middle
  REQUIRE(kvmd.broker.Busy(second));
  freer.kept.clear();
  while (kvmd.broker.Busy(second)) kvmd.GoOn(second);
  connection.Take(Body::kHelloReply);
}

TEST_CASE("Hostile: a domain that kvmd lacks the memory for in the middle is an error, and the next try is a new one", "[unit]") {
  LargeDomains kvmd;
  FakeConnection connection;
  const ClientId client = kvmd.Begin(connection, 1000);
  REQUIRE(kvmd.broker.Busy(client));
  KVM_REQUIRE_OK(kvmd.broker.Outcome(client));
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const rlimit small{1 << 20, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  kvmd.GoOn(client);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  CHECK_FALSE(kvmd.broker.Busy(client));
  CHECK_FALSE(kvmd.broker.Greeted(client));
  KVM_CHECK_ERROR(kvmd.broker.Outcome(client), Errc::kResourceExhausted, "RLIMIT_FSIZE");
  CheckSays(connection.TakeError(), "domain uid-1000");
  kvmd.broker.Leave(client, true);
  const ClientId again = kvmd.Begin(connection, 1000);
  while (kvmd.broker.Busy(again)) kvmd.GoOn(again);
  connection.Take(Body::kHelloReply);
}

// Where Broker::GiveUp does not wait, the domain goes at once; without the budget in its step for
// leases, or in SlabPool::GiveUpAll, a step is too long; where SlabPool, SlotTable or HostCache
// destroys what it drops, the freer gets too little: seen.
TEST_CASE("Hostile: a domain with a large host cache goes in slices for another one", "[unit]") {
  constexpr std::uint32_t kLeases = LargeCache::kSlabs * LargeCache::kSlabSlots;
  const bool leased = GENERATE(false, true);
  LateFreer freer;
  LargeCache cache(&freer, leased ? kLeases : 0);
  REQUIRE(cache.leased == (leased ? kLeases : 0u));
  REQUIRE(cache.blocks == LargeCache::kSlabs * LargeCache::kSlabSlots);
  CHECK(freer.objects.size() > 1);  // policies of smaller capacities
  freer.objects.clear();
  freer.object_bytes = 0;
  Node& node = cache.node;
  FakeConnection connection;
  const ClientId next = node.broker.Join(connection, {kDeadPid, 1001, 1001}, {});
  kvmwire::ClientMessage hello;
  hello.mutable_hello()->set_protocol_version(kProtocolVersion);
  WorkUnits worst = Cost([&] { KVM_REQUIRE_OK(node.broker.Handle(next, hello, {})); }), all = worst;
  CHECK(node.broker.domains().Find("uid-1000") != nullptr);
  while (node.broker.domains().Find("uid-1000") != nullptr) {
    const WorkUnits step = Cost([&] { node.broker.GoOn(next); });
    worst = std::max(worst, step);
    all += step;
  }
  CHECK(all > 2 * kSliceUnits);
  CHECK(worst <= kMostOfStep + kSliceUnits / 2);  // and the slab that had begun
  CHECK(node.broker.lessor().all().empty());
  CHECK(freer.objects.size() == 2);  // the class with its table, and the keys that were seen
  CHECK(freer.object_bytes >= cache.blocks * daemon::SlotTable::kBytesPerSlot);
  while (node.broker.Busy(next)) node.broker.GoOn(next);
  connection.Take(Body::kHelloReply);
  CHECK(WorkStepwise(node).worst <= kMostOfStep);
}

}  // namespace kvm::test
