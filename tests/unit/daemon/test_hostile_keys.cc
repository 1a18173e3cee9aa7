// Keys that a client has chosen so that they share a place in a table of kvmd's. Work is counted
// (daemon/system/work_meter.h), time is not.
#include <fcntl.h>

#include <algorithm>
#include <memory>
#include <span>
#include <unordered_map>

#include "daemon/broker/state/state_store.h"
#include "daemon/host_cache/slot_table.h"
#include "daemon/policy/key_table.h"
#include "tests/support/broker/counted_work.h"
#include "tests/support/broker/late_freer.h"
#include "tests/support/broker/offloading_worker.h"

namespace kvm::test {
namespace {

using daemon::kSliceUnits;
using daemon::WorkUnits;

constexpr std::uint32_t kKeys = 8192;

// Keys that would all be in one map of the table, and share a bucket there, if keys were hashes.
std::vector<std::uint64_t> SharingABucket() {
  constexpr std::uint64_t kMaps = 64;
  std::unordered_map<std::uint64_t, int> plain;
  plain.max_load_factor(1 + 1.0F / kMaps);
  for (std::uint64_t key = 0; key < kKeys; ++key) plain.emplace(key, 0);
  std::vector<std::uint64_t> keys;
  for (std::uint64_t key = 0; key < kKeys; ++key) keys.push_back(1 + key * kMaps * plain.bucket_count());
  return keys;
}

daemon::Domain& DomainOf(const Node& node) { return *node.broker.domains().Find("uid-1000"); }

// What a kvmd has left when it ended: its registry, and regions.
daemon::PersistedState LeftBy(const Node& node) {
  daemon::PersistedState state;
  state.registries.emplace_back(::fcntl(DomainOf(node).segment().fd(), F_DUPFD_CLOEXEC, 0));
  return state;
}
daemon::PersistedRegion Left(const Node& node, const WireRegion& region, std::uint32_t pid = kDeadPid) {
  daemon::PersistedRegion left;
  left.id = "0000000000000001";
  left.manifest.set_domain(DomainOf(node).name());
  left.manifest.set_registry_epoch(DomainOf(node).epoch());
  left.manifest.set_row(region.row);
  left.manifest.set_region_epoch(region.region_epoch);
  *left.manifest.mutable_descriptor_() = region.descriptor;
  left.manifest.set_model_spec(LlamaSpec().Canonical());
  left.manifest.set_owner_pid(pid);
  left.manifest.set_owner_uid(1000);
  for (const int fd : region.fds()) left.fds.emplace_back(UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)));
  left.process = std::make_shared<daemon::WatchedProcess>(UniqueFd(), false);
  return left;
}

}  // namespace

TEST_CASE("Hostile: a stored block is found in a few steps, whatever keys the others have", "[unit]") {
  daemon::FreeNow freer;
  daemon::SlotTable blocks(policy::PolicyKind::kLru, kKeys, 1, freer);
  const std::uint32_t slab = blocks.AddSlab();
  const std::vector<std::uint64_t> keys = SharingABucket();
  for (const std::uint64_t key : keys) {
    PublishRecord record;
    record.key = {key, ~key};
    REQUIRE(blocks.Grant(slab, record));
  }
  std::uint32_t found = 0;
  const WorkUnits cost = Cost([&] {
    for (const std::uint64_t key : keys) found += blocks.Find({key, ~key}).has_value();
  });
  CHECK(found == kKeys);
  CHECK(cost < 4 * kKeys);
}

TEST_CASE("Hostile: a policy's table has no long runs, whatever keys it has", "[unit]") {
  // 0x9E3779B97F4A7C15 × kInverse is 1: multiplied by it, these keys have equal bits where a table
  // that takes bits 32 to 55 of the product looks.
  constexpr std::uint64_t kInverse = 0xF1DE83E19937733D;
  static_assert(kInverse * 0x9E3779B97F4A7C15 == 1);
  policy::KeyTable counted(kKeys), multiplied(kKeys);
  for (std::uint32_t key = 0; key < kKeys; ++key) {
    counted.Insert(key + 1, key);
    multiplied.Insert(((std::uint64_t{0xABCDEF} << 32) + key) * kInverse, key);
  }
  CHECK(counted.LongestRun() < kKeys / 16);
  CHECK(multiplied.LongestRun() < kKeys / 16);
}

TEST_CASE("Hostile: a host cache that grows tells its new policy of its blocks in slices, the oldest first", "[unit]") {
  constexpr std::uint32_t kOfSlab = 8192;
  LateFreer freer;
  daemon::SlotTable blocks(policy::PolicyKind::kLru, kOfSlab, 4, freer);
  const std::uint32_t first = blocks.AddSlab();
  for (std::uint32_t i = 0; i < kOfSlab; ++i) {
    PublishRecord record;
    record.key = {i * 0x9E37'79B9'7F4A'7C15 + 1, i};
    const policy::Slot slot = *blocks.Grant(first, record);
    blocks.Commit(slot);
    blocks.Use(std::span(&slot, 1), i, false);
  }
  CHECK(Cost([&] { static_cast<void>(blocks.AddSlab()); }) <= kSliceUnits);
  REQUIRE(freer.objects.size() == 1);  // the policy before
  CHECK(freer.object_bytes == kOfSlab * daemon::SlotTable::kBytesPerSlot);
  Steps steps;
  for (bool more = true; more; ++steps.count) steps.worst = std::max(steps.worst, Cost([&] { more = blocks.Work(daemon::WorkBudget()); }));
  CHECK(steps.count > 3);
  CHECK(steps.worst <= kMostOfStep);
  for (std::uint64_t i = 0; i < 100; ++i) {
    const std::optional<policy::Slot> victim = blocks.ChooseVictim(std::span(&first, 1), {});
    REQUIRE(victim);
    REQUIRE(blocks[*victim].record.key.hi == i);
    blocks.Free(*victim);
  }
}

TEST_CASE("Hostile: of blocks whose keys share their first half, the host cache takes one", "[unit]") {
  Node node(CacheOf(4));
  OffloadingWorker writer(node, "writer");
  std::vector<PublishRecord> records = writer.Write(0, 4);
  for (PublishRecord& record : records) {
    record.key.lo = 7;
    record.key.hi = record.block;
  }
  const kvmwire::PrepareStoreReply reply = writer.Offer(records, true);
  CHECK(reply.grants_size() == 1);
  CHECK(reply.not_admitted() == 3);
  writer.Done(reply);
  CHECK(writer.Offer(records, true).present_size() == 1);
}

TEST_CASE("Hostile: entries whose keys share a place are taken over from an earlier kvmd in slices", "[unit]") {
  constexpr std::uint32_t kBlocks = 4096;
  Node earlier;
  FakeConnection connection;
  const ClientId client = earlier.Join(connection);
  WireRegion region("crowd", LlamaSpec(), kBlocks);
  region.descriptor.set_outlives_owner(true);
  earlier.Register(client, connection, region);
  std::vector<PublishRecord> records;
  for (std::uint32_t block = 0; block < kBlocks; ++block) records.push_back(region.Write(block, {block, 12345}));
  earlier.Handle(client, region.PublishMessage(records));
  const std::uint64_t entries = earlier.Domain().entries();
  REQUIRE(entries > 500);

  daemon::PersistedState state = LeftBy(earlier);
  state.regions.push_back(Left(earlier, region));
  Node next;
  next.broker.Restore(std::move(state));
  const Steps steps = WorkStepwise(next);
  CHECK(next.Domain().entries() == entries);
  CHECK(steps.count > 10);
  CHECK(steps.worst <= 2 * kSliceUnits);
}

TEST_CASE("Hostile: many regions are taken over from an earlier kvmd in slices", "[unit]") {
  constexpr std::uint32_t kRegions = 200, kOfClient = 50;
  Node earlier;
  std::vector<std::unique_ptr<FakeConnection>> connections;
  std::vector<WireRegion> regions;
  ClientId client = 0;
  for (std::uint32_t i = 0; i < kRegions; ++i) {
    if (i % kOfClient == 0) client = earlier.Join(*connections.emplace_back(std::make_unique<FakeConnection>()));
    WireRegion& region = regions.emplace_back("pool" + std::to_string(i), LlamaSpec(), 1);
    earlier.Register(client, *connections.back(), region);
  }
  daemon::PersistedState state = LeftBy(earlier);
  for (std::uint32_t i = 0; i < kRegions; ++i) state.regions.push_back(Left(earlier, regions[i], kDeadPid + i / kOfClient));
  Node next;
  next.broker.Restore(std::move(state));
  const Steps steps = WorkStepwise(next);
  CHECK(next.Domain().orphans() == kRegions);
  CHECK(steps.count > 2);
  CHECK(steps.worst <= kMostOfStep);
}

}  // namespace kvm::test
