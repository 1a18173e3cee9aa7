// Much that ends, or comes back, at one moment: leases, slots that a worker was granted, offers
// that wait for the store. Work is counted (daemon/system/work_meter.h), time is not.
#include <fcntl.h>
#include <sys/resource.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/support/broker/counted_work.h"
#include "tests/support/broker/offloading_worker.h"
#include "tests/support/broker/slow_manager.h"
#include "tests/support/process/many_descriptors.h"

namespace kvm::test {
namespace {

using daemon::kSliceUnits;
using daemon::WorkUnits;

// One client's leases, each of which covers a block of each of many regions.
struct ManyLeases {
  static constexpr std::uint32_t kRegions = 30, kLeases = 300;

  static Config Of() {
    Config config;
    config.max_leased_percent_per_domain = config.max_leased_percent_per_client = 100;
    config.max_leases_per_client = kLeases;
    return config;
  }

  ManyLeases() : node(Of()) {
    kvmwire::ClientMessage message;
    kvmwire::AcquireLease& acquire = *message.mutable_acquire_lease();
    {
      FakeConnection owners;
      const ClientId owner = node.Join(owners);
      for (std::uint32_t i = 0; i < kRegions; ++i) {
        WireRegion region = node.Granted(owner, owners, "pool" + std::to_string(i), 1);
        node.Register(owner, owners, region);
        const PublishRecord record = region.Write(0, {i, i * 0x9E37'79B9'7F4A'7C15});
        node.Handle(owner, region.PublishMessage({record}));
        kvmwire::LeaseSource& source = *acquire.add_sources();
        source.set_region(region.row);
        source.set_region_epoch(region.region_epoch);
        source.set_generation(record.generation);
      }
      node.broker.Leave(owner, true);
    }
    holder = node.Join(connection);
    acquire.set_registry_epoch(node.Domain().epoch());
    acquire.set_ttl_ms(60'000);
    for (std::uint32_t i = 0; i < kLeases; ++i) {
      node.Handle(holder, message);
      REQUIRE(connection.Take(Body::kAcquireLeaseReply).message.acquire_lease_reply().blocks() == kRegions);
    }
  }

  // After the step in which they begin to end.
  void CheckTheyEnd(WorkUnits first) {
    CHECK(first <= kMostOfStep);
    CHECK_FALSE(node.broker.lessor().all().empty());
    const Steps steps = WorkStepwise(node);
    CHECK(steps.worst <= kMostOfStep);
    CHECK(node.broker.lessor().all().empty());
    CHECK(node.Domain().leased_blocks() == 0);
  }

  Node node;
  FakeConnection connection;
  ClientId holder = 0;
};

// A worker that was granted every slot of a cache in a domain with zero-on-free, and stores none.
struct ManyGrants {
  static constexpr std::uint32_t kBlocks = 4096;

  static Config Of() {
    Config config;
    config.host_cache_bytes = kBlocks * kBlockBytes;
    config.host_cache_slab_bytes = config.host_cache_bytes / 4;
    daemon::DomainRule rule;
    rule.name = "team";
    rule.uids = {1000};
    rule.zero_on_free = true;
    config.domains = {rule};
    return config;
  }

  ManyGrants() : node(Of()) {}
  // Returns how many were granted.
  static std::uint32_t TakeAll(OffloadingWorker& worker, std::uint64_t salt) {
    std::uint32_t granted = 0;
    for (std::uint32_t from = 0; from < kBlocks; from += kMaxStoreBatch) {
      std::vector<PublishRecord> records = worker.Write(from, from + kMaxStoreBatch, salt);
      while (!records.empty()) {
        const kvmwire::PrepareStoreReply reply = worker.Offer(records, true);
        REQUIRE(reply.decided() > 0);
        granted += static_cast<std::uint32_t>(reply.grants_size());
        records.erase(records.begin(), records.begin() + reply.decided());
      }
    }
    return granted;
  }

  Node node;
};

// A region of so many segments, each of which is another open file of one device.
struct DeviceRegion {
  DeviceRegion(std::uint32_t number, std::uint32_t segments) : region("device" + std::to_string(number), LlamaSpec(), 1) {
    region.descriptor.set_handle_kind(static_cast<std::uint32_t>(layout::HandleKind::kCudaVmmFd));
    region.descriptor.clear_segments();
    region.descriptor.clear_parts();
    fds.push_back(region.fds()[0]);
    for (std::uint32_t segment = 0; segment < segments; ++segment) {
      region.descriptor.add_segments()->set_size_bytes(64);
      kvmwire::GeometryPart& part = *region.descriptor.add_parts();
      part.set_segment(segment);
      part.set_chunk_bytes(64);
      part.set_block_stride(64);
      part.set_count(1);
      fds.push_back(opened.emplace_back(::open("/dev/null", O_RDWR | O_CLOEXEC)).get());
    }
  }

  WireRegion region;
  std::vector<UniqueFd> opened;
  std::vector<int> fds;
};

}  // namespace

TEST_CASE("Hostile: leases of a client that leaves, each of many regions, end in slices", "[unit]") {
  ManyLeases leases;
  leases.CheckTheyEnd(Cost([&] { leases.node.broker.Leave(leases.holder, true); }));
}

TEST_CASE("Hostile: leases whose time is over at the same moment, each of many regions, end in slices", "[unit]") {
  ManyLeases leases;
  leases.CheckTheyEnd(Cost([&] { leases.node.broker.Tick(std::chrono::steady_clock::now() + seconds(70)); }));
}

TEST_CASE("Hostile: the slots of a writer that has died are freed in slices", "[unit]") {
  ManyGrants grants;
  OffloadingWorker writer(grants.node, "writer", 1000, ManyGrants::kBlocks);
  REQUIRE(ManyGrants::TakeAll(writer, 1) == ManyGrants::kBlocks);
  CHECK(Cost([&] { grants.node.broker.Leave(writer.id, true); }) <= kMostOfStep);
  const Steps steps = WorkStepwise(grants.node);
  CHECK(steps.worst <= kMostOfStep);
  CHECK(steps.count > 3);
  OffloadingWorker next(grants.node, "next", 1000, ManyGrants::kBlocks);
  CHECK(ManyGrants::TakeAll(next, 1) == ManyGrants::kBlocks);
}

TEST_CASE("Hostile: the slots of a writer that comes back are freed in slices, and its offers wait for that", "[unit]") {
  ManyGrants grants;
  Sleeper process;
  OffloadingWorker writer(grants.node, "writer", process, 77);
  WireRegion large("large", LlamaSpec(), ManyGrants::kBlocks, kBlockBytes);
  grants.node.Register(writer.id, writer.connection, large);
  std::swap(writer.region, large);
  REQUIRE(ManyGrants::TakeAll(writer, 1) == ManyGrants::kBlocks);
  CHECK(Cost([&] { grants.node.broker.Leave(writer.id, false); }) <= kMostOfStep);
  grants.node.WorkAll();
  OffloadingWorker back(grants.node, "back", process, 77);
  const std::vector<PublishRecord> records = back.Write(0, 4, 2);
  CHECK(Cost([&] { back.Send(records, true); }) <= kMostOfStep);
  CHECK_FALSE(back.connection.Has(Body::kPrepareStoreReply));
  const Steps steps = WorkStepwise(grants.node);
  CHECK(steps.worst <= kMostOfStep);
  CHECK(steps.count > 3);
  CHECK(back.connection.Take(Body::kPrepareStoreReply).message.prepare_store_reply().grants_size() == 4);
}

TEST_CASE("Hostile: what kvmd keeps of tiny blocks counts as memory of the host cache", "[unit]") {
  constexpr std::uint32_t kSlabs = 8, kShards = 3 * kSlabs;
  Config config;
  config.host_cache_bytes = kSlabs << 20;
  config.host_cache_slab_bytes = 1 << 20;
  Node node(config);
  OffloadingWorker worker(node, "tiny");
  std::uint32_t slabs = 0;
  std::string reason;
  for (std::uint32_t shard = 1; shard <= kShards; ++shard) {
    worker.region = WireRegion("shard" + std::to_string(shard), LlamaSpec(), 1, 1);
    worker.region.descriptor.set_shard(4, shard);
    node.Register(worker.id, worker.connection, worker.region);
    const kvmwire::PrepareStoreReply reply = worker.Offer(worker.Write(0, 1, shard), true);
    slabs += static_cast<std::uint32_t>(reply.grants_size());
    if (reply.grants_size() > 0) worker.Done(reply);
    if (reply.refused_full() > 0) reason = reply.reason();
  }
  CHECK(slabs == kSlabs);
  CheckSays(reason, "--host-cache");
}

TEST_CASE("Hostile: a region of many open files is stored in a few steps, though they are of one device", "[unit]") {
  constexpr std::uint32_t kRegions = 8, kSegments = 25;
  SlowManager manager;
  Node node({}, manager.store.get());
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  WorkUnits last = 0;
  for (std::uint32_t i = 0; i < kRegions; ++i) {
    const DeviceRegion region(i, kSegments);
    last = Cost([&] { node.Handle(client, region.region.RegisterMessage(), region.fds); });
    connection.Take(Body::kRegisterRegionReply);
  }
  CHECK(last <= kSliceUnits);
  CHECK(manager.Hear().size() > kRegions * kSegments);
}

TEST_CASE("Hostile: while the store is slow, a client has one offer that waits for it", "[unit]") {
  SlowManager manager;
  Node node(CacheOf(4), manager.store.get());
  OffloadingWorker worker(node, "writer");
  manager.StopListening(1000);
  worker.Send(worker.Write(0, 4));
  node.WorkAll();
  REQUIRE_FALSE(worker.connection.Has(Body::kPrepareStoreReply));
  kvmwire::ClientMessage message;
  message.mutable_prepare_store();
  const kvm::Status again = node.broker.Handle(worker.id, message, {});
  REQUIRE_FALSE(again);
  CHECK(again.error().code == Errc::kProtocol);
  manager.Hear();
  CHECK(worker.connection.Has(Body::kPrepareStoreReply));
}

TEST_CASE("Hostile: while the store is slow, a slab that its writer asks for again waits once", "[unit]") {
  SlowManager manager;
  Node node(CacheOf(4), manager.store.get());
  OffloadingWorker worker(node, "writer");
  REQUIRE(worker.PrepareStore(worker.Write(0, 4)) == 4);
  worker.connection.Take(Body::kSlabGrant);
  manager.StopListening(1000);
  const std::size_t waiting = manager.manager.queue().waiting();
  kvmwire::ClientMessage message;
  message.mutable_prepare_store()->set_grants_lost(true);
  message.mutable_prepare_store()->set_region_epoch(1'000'000);  // refused at once
  for (int i = 0; i < 50; ++i) node.Handle(worker.id, message);
  CHECK(manager.manager.queue().waiting() == waiting + 1);
  manager.Hear();
  worker.connection.Take(Body::kSlabGrant);
  CHECK_FALSE(worker.connection.Has(Body::kSlabGrant));
}

// A later kvmd would take the slab for free while its new writer writes: seen, also by the
// simulation (seed 7 on 2026-11-30).
TEST_CASE("Restart: what is stored of a slab does not name its dead writer once it has another one", "[unit]") {
  SlowManager manager;
  Node node(CacheOf(1), manager.store.get());
  OffloadingWorker adopter(node, "adopter");
  const auto stored = [&] { return manager.Hear(); };
  const std::set<std::string> before = stored();
  std::set<std::string> of_slab;
  {
    OffloadingWorker writer(node, "writer");
    const std::set<std::string> own = stored();
    REQUIRE(writer.PrepareStore(writer.Write(0, kSlots / 2)) == kSlots / 2);
    for (const std::string& name : stored()) {
      if (!own.contains(name)) of_slab.insert(name);
    }
    REQUIRE_FALSE(of_slab.empty());
    node.broker.Leave(writer.id, /*died=*/true);
    node.WorkAll();
  }
  rlimit limit{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &limit) == 0);
  const rlimit none{0, limit.rlim_max};
  const std::vector<PublishRecord> records = adopter.Write(0, kSlots / 2, 5);
  const bool lacking = GENERATE(false, true);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, lacking ? &none : &limit) == 0);
  adopter.Send(records);
  node.WorkAll();
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  const std::set<std::string> after = stored();
  CHECK(adopter.connection.Has(Body::kSlabGrant));
  std::size_t left = 0;  // of the dead writer's: the two descriptors of the slab itself
  for (const std::string& name : of_slab) left += after.contains(name);
  CHECK(left == (lacking ? 0u : 2u));
}

// Where Domain::Reap asks no budget, all of them go in one call: seen.
TEST_CASE("Hostile: regions that end at one moment are freed in slices", "[unit]") {
  constexpr std::uint32_t kRegions = 60, kSegments = 60;
  const ManyDescriptors descriptors;
  if (descriptors.most() < 4 * kRegions * kSegments) KVM_SKIP("needs more descriptors than its hard limit");
  Config config;
  config.max_fds_per_client = config.max_fds_per_user = config.max_fds_per_domain = 2 * kRegions * kSegments;
  Node node(config);
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  for (std::uint32_t i = 0; i < kRegions; ++i) {
    const DeviceRegion region(i, kSegments);
    node.Handle(client, region.region.RegisterMessage(), region.fds);
    connection.Take(Body::kRegisterRegionReply);
  }
  node.broker.Leave(client, true);
  const Steps steps = WorkStepwise(node);
  CHECK(node.Domain().regions() == 0);
  CHECK(steps.worst <= kMostOfStep);
}

}  // namespace kvm::test
