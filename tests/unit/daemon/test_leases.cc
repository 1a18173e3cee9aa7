// Leases at a broker that is driven by hand: what they keep, how they end, what they may not take.
// The clock is the test's.
#include "tests/support/broker/broker_node.h"
#include "tests/support/broker/offloading_worker.h"

namespace kvm::test {
namespace {

using std::chrono::milliseconds;

kvmwire::LeaseSource SourceOf(const WireRegion& region, const PublishRecord& record) {
  kvmwire::LeaseSource source;
  source.set_region(region.row);
  source.set_region_epoch(region.region_epoch);
  source.set_block(record.block);
  source.set_generation(record.generation);
  return source;
}

kvmwire::ClientMessage AcquireMessage(Node& node, const WireRegion& region, const std::vector<PublishRecord>& records,
                                      std::uint32_t ttl_ms = 10'000) {
  kvmwire::ClientMessage message;
  kvmwire::AcquireLease& hold = *message.mutable_acquire_lease();
  hold.set_registry_epoch(node.Domain().epoch());
  hold.set_ttl_ms(ttl_ms);
  for (const PublishRecord& record : records) *hold.add_sources() = SourceOf(region, record);
  return message;
}

// A client that holds, and what it is told.
struct Holder {
  explicit Holder(Node& its_node, std::uint32_t uid = 1000) : node(its_node), id(its_node.Join(connection, kDeadPid + 7, uid)) {}

  kvmwire::AcquireLeaseReply AcquireLease(const WireRegion& region, const std::vector<PublishRecord>& records,
                                          std::uint32_t ttl_ms = 10'000) {
    node.Handle(id, AcquireMessage(node, region, records, ttl_ms));
    return connection.Take(Body::kAcquireLeaseReply).message.acquire_lease_reply();
  }
  std::string Refused(const kvmwire::ClientMessage& message) {
    node.Handle(id, message);
    return connection.TakeError();
  }
  void Release(std::uint64_t lease) {
    kvmwire::ClientMessage message;
    message.mutable_release_lease()->set_lease(lease);
    node.Handle(id, message);
  }
  kvmwire::ClientMessage ExtendMessage(std::uint64_t lease, std::uint32_t ttl_ms) const {
    kvmwire::ClientMessage message;
    message.mutable_renew_lease()->set_lease(lease);
    message.mutable_renew_lease()->set_ttl_ms(ttl_ms);
    return message;
  }

  Node& node;
  FakeConnection connection;
  ClientId id;
};

// All of the host cache may be held, by one client.
Config AllMayBeLeased(std::uint32_t slabs) {
  Config config = CacheOf(slabs);
  config.max_leased_percent = config.max_leased_percent_per_domain = config.max_leased_percent_per_client = 100;
  return config;
}

// A writer whose blocks are in the host cache, and published from its own region, too: one cache of
// `kSlots` of them.
struct Cached {
  explicit Cached(Node& node, std::uint32_t blocks = kSlots) : writer(node, "writer") {
    records = writer.Write(0, blocks);
    node.Handle(writer.id, writer.region.PublishMessage(records));
    REQUIRE(writer.PrepareStore(records) == static_cast<int>(blocks));
  }
  // Which of them are in the host cache.
  std::size_t Left() { return static_cast<std::size_t>(writer.Offer(records).present_size()); }

  OffloadingWorker writer;
  std::vector<PublishRecord> records;
};

// A region whose owner has died, of 4 blocks.
struct Dead {
  explicit Dead(Node& node, const std::string& name = "pool", std::uint64_t salt = 1)
      : owner(node.Join(connection, kDeadPid)), region(node.Granted(owner, connection, name, 4)) {
    node.Register(owner, connection, region);
    for (std::uint32_t block = 0; block < 4; ++block) records.push_back(region.Write(block, {block + 1, salt}));
    node.Handle(owner, region.PublishMessage(records));
    connection.Take(Body::kPublishAck);
    node.broker.Leave(owner, /*died=*/true);
    node.WorkAll();
  }
  FakeConnection connection;
  ClientId owner;
  WireRegion region;
  std::vector<PublishRecord> records;
};

std::vector<PublishRecord> First(const std::vector<PublishRecord>& records, std::size_t count) {
  return {records.begin(), records.begin() + static_cast<std::ptrdiff_t>(count)};
}

TEST_CASE("Leases: leased blocks of the host cache stay while others are evicted, until the release", "[unit]") {
  const auto policy = GENERATE(policy::PolicyKind::kLru, policy::PolicyKind::kS3Fifo, policy::PolicyKind::kHitDensity);
  Config config = AllMayBeLeased(1);
  config.host_cache_policy = policy;
  Node node(config);
  Cached cached(node);
  Holder holder(node);
  // The match names the worker's own blocks; kvmd holds its copies.
  const kvmwire::AcquireLeaseReply reply = holder.AcquireLease(cached.writer.region, First(cached.records, 5));
  CHECK(reply.blocks() == 5);
  CHECK_FALSE(reply.has_not_leased());
  CHECK(node.Domain().leased_blocks() == 5);
  CHECK(node.Domain().leased_bytes() == 5 * kBlockBytes);
  for (std::uint64_t salt = 2; salt < 10; ++salt) {
    CHECK(cached.writer.PrepareStore(cached.writer.Write(16, 19, salt)) == 3);
  }
  CHECK(cached.writer.Offer(First(cached.records, 5)).present_size() == 5);
  holder.Release(reply.lease());
  CHECK(node.Domain().leases() == 0);
  CHECK(node.Domain().leased_blocks() == 0);
  for (std::uint64_t salt = 10; salt < 20; ++salt) cached.writer.PrepareStore(cached.writer.Write(16, 24, salt));
  const kvmwire::PrepareStoreReply left = cached.writer.Offer(First(cached.records, 5));
  CHECK(left.present_size() < 5);
  cached.writer.Done(left);
}

TEST_CASE("Leases: with all of the host cache leased, offers are refused with the reason and do not wait", "[unit]") {
  Node node(AllMayBeLeased(2));
  Cached cached(node);
  const std::vector<PublishRecord> second = cached.writer.Write(8, 16);
  node.Handle(cached.writer.id, cached.writer.region.PublishMessage(second));
  REQUIRE(cached.writer.PrepareStore(second) == kSlots);
  Holder holder(node);
  const kvmwire::AcquireLeaseReply lease = holder.AcquireLease(cached.writer.region, cached.records);
  CHECK(lease.blocks() == kSlots);
  CHECK(holder.AcquireLease(cached.writer.region, second).blocks() == kSlots);
  const kvmwire::PrepareStoreReply refused = cached.writer.Offer(cached.writer.Write(16, 22, 2));
  CHECK(refused.decided() == 6);
  CHECK(refused.refused_full() == 6);
  CheckSays(refused.reason(), "leased");
  // Nor does another worker get its share of the memory.
  OffloadingWorker other(node, "other");
  const kvmwire::PrepareStoreReply others = other.Offer(other.Write(0, 3, 3));
  CHECK(others.refused_full() == 3);
  CheckSays(others.reason(), "leased");
  CHECK(cached.Left() == kSlots);
  holder.Release(lease.lease());
  CHECK(cached.writer.PrepareStore(cached.writer.Write(16, 22, 2)) == 6);
}

TEST_CASE("Leases: one ends when its time is over, and not before it when it was extended", "[unit]") {
  Node node(AllMayBeLeased(1));
  Cached cached(node);
  Holder holder(node);
  const auto start = std::chrono::steady_clock::now();
  const std::uint64_t first = holder.AcquireLease(cached.writer.region, First(cached.records, 2), 10'000).lease();
  const std::uint64_t second = holder.AcquireLease(cached.writer.region, First(cached.records, 3), 10'000).lease();
  CHECK(first != second);
  CHECK(node.Domain().leases() == 2);
  CHECK(node.Domain().leased_blocks() == 5);
  node.broker.Tick(start + seconds(9));
  CHECK(node.Domain().leases() == 2);
  node.Handle(holder.id, holder.ExtendMessage(first, 60'000));
  CHECK(holder.connection.Take(Body::kAcquireLeaseReply).message.acquire_lease_reply().blocks() == 2);
  node.broker.Tick(start + seconds(20));
  CHECK(node.Domain().leases() == 1);
  CHECK(node.Domain().leased_blocks() == 2);
  CheckSays(holder.Refused(holder.ExtendMessage(second, 10'000)), "no such lease");
  node.broker.Tick(start + seconds(59));
  CHECK(node.Domain().leases() == 1);
  node.broker.Tick(start + seconds(70));
  CHECK(node.Domain().leases() == 0);
  CHECK(node.Domain().leased_bytes() == 0);
  // It does not count any more: the limit's number of leases can be acquired again.
  for (std::uint64_t salt = 2; salt < 6; ++salt) CHECK(cached.writer.PrepareStore(cached.writer.Write(16, 24, salt)) == kSlots);
}

TEST_CASE("Leases: a client's leases end with its connection, and no other client can end them", "[unit]") {
  Node node(AllMayBeLeased(1));
  Cached cached(node);
  Holder holder(node), other(node);
  const std::uint64_t lease = holder.AcquireLease(cached.writer.region, cached.records).lease();
  other.Release(lease);
  CheckSays(other.Refused(other.ExtendMessage(lease, 1000)), "no such lease");
  CHECK(node.Domain().leased_blocks() == kSlots);
  node.broker.Leave(holder.id, /*died=*/GENERATE(true, false));
  CHECK(node.Domain().leases() == 0);
  CHECK(node.Domain().leased_blocks() == 0);
  CHECK(cached.writer.PrepareStore(cached.writer.Write(16, 20, 2)) == 4);
}

TEST_CASE("Leases: one covers the leading blocks that kvmd keeps, and says why it does not cover the next one", "[unit]") {
  Node node(AllMayBeLeased(2));
  Cached cached(node, 6);
  Holder holder(node);
  std::vector<PublishRecord> records = cached.records;
  // In the worker's memory only
  const std::vector<PublishRecord> own = cached.writer.Write(20, 22, 4);
  node.Handle(cached.writer.id, cached.writer.region.PublishMessage(own));
  records.insert(records.end(), own.begin(), own.end());
  const kvmwire::AcquireLeaseReply part = holder.AcquireLease(cached.writer.region, records);
  CHECK(part.blocks() == 6);
  CHECK(part.not_leased().code() == static_cast<std::uint32_t>(Errc::kUnsupported));
  CheckSays(part.not_leased().message(), "writer");
  CheckSays(holder.Refused(AcquireMessage(node, cached.writer.region, own)), "overwrite it at any time");
  // What was rewritten since the match ends it as well.
  cached.writer.region.generations.BeginWrite(2);
  const kvmwire::AcquireLeaseReply stale = holder.AcquireLease(cached.writer.region, cached.records);
  CHECK(stale.blocks() == 2);
  CheckSays(stale.not_leased().message(), "rewritten");
  CHECK(node.Domain().leases() == 2);
}

TEST_CASE("Leases: more blocks follow those that a lease has, in order and not behind a hole", "[unit]") {
  Node node(AllMayBeLeased(1));
  Cached cached(node);
  Holder holder(node);
  kvmwire::AcquireLeaseReply reply = holder.AcquireLease(cached.writer.region, First(cached.records, 3));
  kvmwire::ClientMessage more = AcquireMessage(node, cached.writer.region, {cached.records.begin() + 3, cached.records.end()});
  more.mutable_acquire_lease()->set_lease(reply.lease());
  more.mutable_acquire_lease()->set_after(4);
  CheckSays(holder.Refused(more), "lost blocks");
  more.mutable_acquire_lease()->set_after(3);
  node.Handle(holder.id, more);
  reply = holder.connection.Take(Body::kAcquireLeaseReply).message.acquire_lease_reply();
  CHECK(reply.blocks() == kSlots);
  CHECK(node.Domain().leases() == 1);
  more.mutable_acquire_lease()->set_lease(99);
  CheckSays(holder.Refused(more), "no such lease");
}

TEST_CASE("Leases: a full index drops no leased block", "[unit]") {
  Config config = AllMayBeLeased(1);
  config.max_entries = 64;
  Node node(config);
  OffloadingWorker writer(node, "writer", 1000, 256);
  const std::vector<PublishRecord> records = writer.Write(0, kSlots);
  REQUIRE(writer.PrepareStore(records) == kSlots);
  const Received announced = writer.Announced();
  std::vector<PublishRecord> sources;  // as the index has them, in the slab
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) sources.push_back({{}, 0, 2, slot, 0});
  WireRegion slab("slab", LlamaSpec(), kSlots, kBlockBytes);
  slab.row = announced.message.region_announce().region();
  slab.region_epoch = announced.message.region_announce().region_epoch();
  Holder holder(node);
  const bool held = GENERATE(true, false);
  if (held) CHECK(holder.AcquireLease(slab, sources).blocks() == kSlots);
  // kvmd's own entries are more than a share of a table that so many publish to.
  std::vector<std::unique_ptr<OffloadingWorker>> crowd;
  for (int i = 0; i < 12; ++i) {
    crowd.push_back(std::make_unique<OffloadingWorker>(node, "crowd-" + std::to_string(i)));
    node.Handle(crowd.back()->id, crowd.back()->region.PublishMessage(crowd.back()->Write(0, 40, 100 + static_cast<std::uint64_t>(i))));
  }
  CHECK(node.Domain().entries() == 64);
  const std::uint64_t blocks = node.Domain().host_cache().blocks();
  if (held) {
    CHECK(blocks == kSlots);
  } else {
    CHECK(blocks < kSlots);
  }
}

TEST_CASE("Leases: a dead worker's region stays beyond its time while its blocks are leased, and is freed with the lease", "[unit]") {
  Node node(With(&Config::orphan_ttl_s, 5u));
  Dead dead(node), unheld(node, "other", 2);
  Holder holder(node);
  const auto start = std::chrono::steady_clock::now();
  const kvmwire::AcquireLeaseReply reply = holder.AcquireLease(dead.region, dead.records, 60'000);
  CHECK(reply.blocks() == 4);
  CHECK(node.Domain().leased_orphans() == 1);
  node.broker.Tick(start + seconds(30));
  node.WorkAll();
  CHECK(node.Domain().orphans() == 1);
  CHECK(node.Domain().entries() == 4);
  const bool released = GENERATE(true, false);
  if (released) holder.Release(reply.lease());
  node.broker.Tick(start + seconds(released ? 31 : 61));
  node.WorkAll();
  CHECK(node.Domain().orphans() == 0);
  CHECK(node.Domain().entries() == 0);
  CHECK(node.Domain().leases() == 0);
}

TEST_CASE("Leases: reclaiming skips leased regions, and with force it takes them and the client is told", "[unit]") {
  Node node;
  Dead dead(node), other(node, "other", 2);
  Holder holder(node);
  const kvmwire::AcquireLeaseReply lease = holder.AcquireLease(dead.region, dead.records);
  FakeConnection asking_peer;
  const ClientId asking = node.Join(asking_peer, 1, 1000, kvmwire::OBSERVER);
  kvmwire::ClientMessage message;
  message.set_request_id(1);
  message.mutable_reclaim()->set_ack_timeout_ms(1);
  const auto reclaim = [&] {
    node.Handle(asking, message);
    node.WorkAll();
    node.broker.Tick(std::chrono::steady_clock::now() + seconds(1));
    return asking_peer.Take(Body::kReclaimReply).message.reclaim_reply();
  };
  const kvmwire::ReclaimReply without = reclaim();
  CHECK(without.regions() == 1);
  CHECK(without.leased() == 1);
  CHECK(node.Domain().orphans() == 1);
  CHECK_FALSE(holder.connection.Has(Body::kLeaseShrunk));
  message.mutable_reclaim()->set_force(true);
  const kvmwire::ReclaimReply forced = reclaim();
  CHECK(forced.regions() == 1);
  CHECK(forced.leased() == 0);
  CHECK(forced.leases_shrunk() == 1);
  const kvmwire::LeaseShrunk cut = holder.connection.Take(Body::kLeaseShrunk).message.lease_shrunk();
  CHECK(cut.lease() == lease.lease());
  CHECK(cut.blocks() == 0);
  CheckSays(cut.reason(), "pool");
  CHECK(node.Domain().leases() == 0);
  CHECK(node.Domain().orphans() == 0);
}

TEST_CASE("Leases: only the region's own user may reclaim by force", "[unit]") {
  Config config;
  config.domain_mode = daemon::DomainMode::kNode;
  config.reclaim_others_after_s = 0;
  Node node(config);
  Dead dead(node);
  Holder holder(node);
  REQUIRE(holder.AcquireLease(dead.region, dead.records).blocks() == 4);
  Holder stranger(node, 2000);
  kvmwire::ClientMessage message;
  message.mutable_reclaim()->set_force(true);
  message.mutable_reclaim()->set_device_uuid(std::string(16, '\0'));  // memory that it needs itself
  node.Handle(stranger.id, message);
  CHECK(stranger.connection.Take(Body::kReclaimReply).message.reclaim_reply().leased() == 1);
  CHECK(node.Domain(2000).leases() == 1);
}

TEST_CASE("Leases: a client that adopts a region gets all of it, and the lease keeps the blocks before", "[unit]") {
  Config config = AllMayBeLeased(1);
  config.orphan_ttl_s = 300;
  Node node(config);
  OffloadingWorker writer(node, "writer");
  const std::vector<PublishRecord> offloaded = writer.Write(0, 3);
  node.Handle(writer.id, writer.region.PublishMessage(offloaded));
  REQUIRE(writer.PrepareStore(offloaded) == 3);
  WireRegion dead = node.Granted(writer.id, writer.connection, "dead", 4, kBlockBytes);
  node.Register(writer.id, writer.connection, dead);
  std::vector<PublishRecord> records;
  for (std::uint32_t block = 0; block < 4; ++block) records.push_back(dead.Write(block, {block + 500, 5}));
  node.Handle(writer.id, dead.PublishMessage(records));
  Holder holder(node);
  kvmwire::ClientMessage message = AcquireMessage(node, writer.region, offloaded);
  node.broker.Leave(writer.id, /*died=*/true);
  node.WorkAll();
  // Kept blocks of two kinds: three in the cache, three of the dead worker's.
  const Received announced = writer.Announced();
  message.mutable_acquire_lease()->clear_sources();
  for (std::uint32_t slot = 0; slot < 3; ++slot) {
    kvmwire::LeaseSource& source = *message.mutable_acquire_lease()->add_sources();
    source.set_region(announced.message.region_announce().region());
    source.set_region_epoch(announced.message.region_announce().region_epoch());
    source.set_block(slot);
    source.set_generation(2);
  }
  for (std::size_t i = 0; i < 3; ++i) *message.mutable_acquire_lease()->add_sources() = SourceOf(dead, records[i]);
  node.Handle(holder.id, message);
  const kvmwire::AcquireLeaseReply lease = holder.connection.Take(Body::kAcquireLeaseReply).message.acquire_lease_reply();
  CHECK(lease.blocks() == 6);
  FakeConnection adopter_peer;
  const ClientId adopter = node.Join(adopter_peer, kDeadPid + 1);
  node.Handle(adopter, Node::Adopt(dead));
  adopter_peer.Take(Body::kAdoptRegionReply);
  const kvmwire::LeaseShrunk cut = holder.connection.Take(Body::kLeaseShrunk).message.lease_shrunk();
  CHECK(cut.blocks() == 3);
  CheckSays(cut.reason(), "adopted");
  CHECK(node.Domain().leased_blocks() == 3);
  CHECK(node.Domain().leased_orphans() == 0);
  // The adopting worker's region ends like any other: it has no pins of the lease.
  node.broker.Leave(adopter, /*died=*/true);
  CHECK(node.Domain().orphans() == 1);
  node.broker.Tick(std::chrono::steady_clock::now() + seconds(301));
  node.WorkAll();
  CHECK(node.Domain().orphans() == 0);
}

TEST_CASE("Leases: a new worker with a dead worker's name takes its place, leased or not", "[unit]") {
  Node node;
  Dead dead(node);
  Holder holder(node);
  REQUIRE(holder.AcquireLease(dead.region, dead.records).blocks() == 4);
  FakeConnection connection;
  const ClientId newcomer = node.Join(connection, kDeadPid + 1);
  WireRegion region = node.Granted(newcomer, connection, "pool", 4);
  node.Register(newcomer, connection, region);
  node.WorkAll();
  CHECK(holder.connection.Take(Body::kLeaseShrunk).message.lease_shrunk().blocks() == 0);
  CHECK(node.Domain().leases() == 0);
  CHECK(node.Domain().orphans() == 0);
}

TEST_CASE("Leases: slabs whose block size no worker has any more are dropped, and the lease with them", "[unit]") {
  Node node(AllMayBeLeased(2));
  Holder holder(node);
  {
    Cached cached(node, 4);
    REQUIRE(holder.AcquireLease(cached.writer.region, cached.records).blocks() == 4);
    node.broker.Leave(cached.writer.id, true);
    node.WorkAll();
  }
  OffloadingWorker after(node, "after", 1000, 64, 2 * kBlockBytes);
  node.WorkAll();
  CHECK(holder.connection.Take(Body::kLeaseShrunk).message.lease_shrunk().blocks() == 0);
  CHECK(node.Domain().leases() == 0);
  CHECK(node.Domain().leased_bytes() == 0);
}

TEST_CASE("Leases: the limit on dead workers' regions holds even if all of them are leased", "[unit]") {
  Config config = With(&Config::max_orphans, 1u);
  Node node(config);
  Dead dead(node);
  Holder holder(node);
  REQUIRE(holder.AcquireLease(dead.region, dead.records).blocks() == 4);
  Dead next(node, "next", 2);
  CHECK(node.Domain().orphans() == 1);
  CHECK(node.Domain().entries() == 4);
  CHECK_FALSE(holder.connection.Has(Body::kLeaseShrunk));
}

TEST_CASE("Leases: limits are errors that name the option, and affect only the client that reaches them", "[unit]") {
  SECTION("time") {
    Node node(With(&Config::max_lease_ttl_s, 10u));
    Dead dead(node);
    Holder holder(node);
    CheckSays(holder.Refused(AcquireMessage(node, dead.region, dead.records, 10'001)), "--max-lease-ttl-s");
    CheckSays(holder.Refused(AcquireMessage(node, dead.region, dead.records, 0)), "time to live");
    const std::uint64_t lease = holder.AcquireLease(dead.region, dead.records, 10'000).lease();
    CheckSays(holder.Refused(holder.ExtendMessage(lease, 10'001)), "--max-lease-ttl-s");
    CHECK(node.Domain().leases() == 1);
  }
  SECTION("leases") {
    Node node(With(&Config::max_leases_per_client, 2u));
    Dead dead(node);
    Holder holder(node), other(node);
    for (int i = 0; i < 2; ++i) holder.AcquireLease(dead.region, dead.records);
    CheckSays(holder.Refused(AcquireMessage(node, dead.region, dead.records)), "--max-leases-per-client");
    CHECK(other.AcquireLease(dead.region, dead.records).blocks() == 4);
  }
  SECTION("leases of a user, over all connections") {
    // Without --max-leases-per-user in Lessor::Grant the fourth is granted: seen.
    Config config = With(&Config::max_leases_per_user, 3u);
    config.domain_mode = daemon::DomainMode::kNode;
    Node node(config);
    Dead dead(node);
    Holder first(node), second(node), other(node, 1001);
    first.AcquireLease(dead.region, dead.records);
    const std::uint64_t lease = first.AcquireLease(dead.region, dead.records).lease();
    second.AcquireLease(dead.region, dead.records);
    CheckSays(second.Refused(AcquireMessage(node, dead.region, dead.records)),
              "too many leases of user 1000: the limit is 3 (--max-leases-per-user)");
    CHECK(other.AcquireLease(dead.region, dead.records).blocks() == 4);
    first.Release(lease);
    CHECK(second.AcquireLease(dead.region, dead.records).blocks() == 4);
  }
  SECTION("dead workers' regions") {
    Node node(With(&Config::max_leased_orphans, 1u));
    Dead dead(node), second(node, "second", 2);
    Holder holder(node);
    holder.AcquireLease(dead.region, dead.records);
    CheckSays(holder.Refused(AcquireMessage(node, second.region, second.records)), "--max-leased-orphans");
    CHECK(holder.AcquireLease(dead.region, dead.records).blocks() == 4);
  }
  SECTION("shares of the host cache") {
    Config config = CacheOf(1);
    config.max_leased_percent_per_client = 25;
    config.max_leased_percent_per_domain = 50;
    Node node(config);
    Cached cached(node);
    Holder first(node), second(node), third(node);
    const kvmwire::AcquireLeaseReply reply = first.AcquireLease(cached.writer.region, cached.records);
    CHECK(reply.blocks() == kSlots / 4);
    CheckSays(reply.not_leased().message(), "--max-leased-percent-per-client");
    CheckSays(first.Refused(AcquireMessage(node, cached.writer.region, cached.records)), "--max-leased-percent-per-client");
    CHECK(second.AcquireLease(cached.writer.region, cached.records).blocks() == kSlots / 4);
    CheckSays(third.Refused(AcquireMessage(node, cached.writer.region, cached.records)), "--max-leased-percent-per-domain");
    first.Release(reply.lease());
    CHECK(third.AcquireLease(cached.writer.region, cached.records).blocks() == kSlots / 4);
  }
  SECTION("all of the host cache") {
    Config config = CacheOf(1);
    config.max_leased_percent = 25;
    Node node(config);
    Cached cached(node);
    Holder first(node), second(node);
    CHECK(first.AcquireLease(cached.writer.region, cached.records).blocks() == kSlots / 4);
    CheckSays(second.Refused(AcquireMessage(node, cached.writer.region, cached.records)), "--max-leased-percent)");
  }
  SECTION("entries") {
    Config config;
    config.max_entries = 64;
    config.max_leased_percent_per_client = 5;
    Node node(config);
    Dead dead(node);
    Holder holder(node);
    const kvmwire::AcquireLeaseReply reply = holder.AcquireLease(dead.region, dead.records);
    CHECK(reply.blocks() == 3);
    CheckSays(reply.not_leased().message(), "--max-leased-percent-per-client");
  }
}

TEST_CASE("Leases: wrong messages of hostile clients are refused or end their connection", "[unit]") {
  Node node;
  Dead dead(node);
  Holder holder(node), stranger(node, 2000);
  kvmwire::ClientMessage message = AcquireMessage(node, dead.region, dead.records);
  const auto refused = [&](const std::string& why) { CheckSays(holder.Refused(message), why); };
  message.mutable_acquire_lease()->mutable_sources(0)->set_block(4'000'000'000);
  refused("out of range");
  message.mutable_acquire_lease()->mutable_sources(0)->set_region(4'000'000'000);
  refused("has gone");
  message = AcquireMessage(node, dead.region, dead.records);
  message.mutable_acquire_lease()->mutable_sources(0)->set_generation(dead.records[0].generation + 2);
  refused("rewritten");
  message.mutable_acquire_lease()->set_registry_epoch(1);
  refused("another registry");
  message = AcquireMessage(node, dead.region, {});
  refused("no blocks");
  // Another domain's blocks can't be named: its registry is another one.
  CheckSays(stranger.Refused(AcquireMessage(node, dead.region, dead.records)), "another registry");
  for (std::size_t i = 0; i <= kMaxLeaseBatch; ++i) message.mutable_acquire_lease()->add_sources();
  KVM_CHECK_ERROR(node.broker.Handle(holder.id, message, {}), Errc::kProtocol, "too many blocks");
  CHECK(node.Domain().leases() == 0);
}

TEST_CASE("Leases: operators see their clients, their blocks, and the time left", "[unit]") {
  Node node(AllMayBeLeased(1));
  Cached cached(node);
  Holder holder(node);
  const kvmwire::AcquireLeaseReply lease = holder.AcquireLease(cached.writer.region, First(cached.records, 3), 10'000);
  FakeConnection connection;
  const ClientId asking = node.Join(connection, 1, 1000, kvmwire::OBSERVER);
  kvmwire::ClientMessage query;
  query.mutable_status_query()->set_leases(true);
  query.mutable_status_query()->set_clients(true);
  node.Handle(asking, query);
  const kvmwire::StatusReply status = connection.Take(Body::kStatusReply).message.status_reply();
  REQUIRE(status.lease_list_size() == 1);
  const kvmwire::LeaseStatus& seen = status.lease_list(0);
  CHECK(seen.lease() == lease.lease());
  CHECK(seen.client_id() == holder.id);
  CHECK(seen.client_name() == "client");
  CHECK(seen.model_id() == LlamaSpec().model_id);
  CHECK(seen.blocks() == 3);
  CHECK(seen.host_cache_blocks() == 3);
  CHECK(seen.bytes() == 3 * kBlockBytes);
  CHECK(seen.left_ms() > 0);
  CHECK(seen.left_ms() <= 10'000);
  for (const kvmwire::ClientStatus& client : status.client_list()) CHECK(client.leases() == (client.client_id() == holder.id ? 1 : 0));
  // A user sees its own domain's.
  FakeConnection other_peer;
  const ClientId other = node.Join(other_peer, 1, 2000, kvmwire::OBSERVER);
  node.Handle(other, query);
  CHECK(other_peer.Take(Body::kStatusReply).message.status_reply().lease_list_size() == 0);
}

}  // namespace
}  // namespace kvm::test
