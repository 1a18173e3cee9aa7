// The host cache of a broker that is driven by hand: grants and their end, whose memory, quotas,
// what hostile clients say. The copies are the test's own.
#include <sys/mman.h>

#include "daemon/host_cache/seen_keys.h"
#include "proto/base/memory_room.h"
#include "tests/support/broker/broker_node.h"
#include "tests/support/broker/offloading_worker.h"
#include "tests/support/data/random.h"

namespace kvm::test {
namespace {

using daemon::HostCacheAdmission;
using std::chrono::milliseconds;

kvmwire::HostCacheDomain Status(Node& node, std::uint32_t uid = 1000) { return node.Domain(uid).host_cache(); }

bool WritableBy(const UniqueFd& fd) {
  void* const memory = ::mmap(nullptr, kSlab, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory != MAP_FAILED) ::munmap(memory, kSlab);
  return memory != MAP_FAILED;
}

TEST_CASE("Host cache: only its writer gets a slab writable, all others read-only", "[unit]") {
  Node node(CacheOf(4));
  OffloadingWorker writer(node, "writer"), reader(node, "reader");
  CHECK(writer.PrepareStore(writer.Write(0, 4)) == 4);
  const Received granted = writer.connection.Take(Body::kSlabGrant);
  CHECK(granted.message.slab_grant().slots() == kSlots);
  CHECK(granted.message.slab_grant().slot_bytes() == kBlockBytes);
  REQUIRE(granted.fds.size() == 1);
  CHECK(WritableBy(granted.fds[0]));
  CHECK_FALSE(reader.connection.Has(Body::kSlabGrant));
  for (OffloadingWorker* each : {&writer, &reader}) {
    const Received announced = each->Announced();
    REQUIRE(announced.fds.size() == 2);
    CHECK_FALSE(WritableBy(announced.fds[0]));
    CHECK_FALSE(WritableBy(announced.fds[1]));
  }
  CHECK(Status(node).blocks() == 4);
  CHECK(Status(node).bytes() == kSlab);
}

TEST_CASE("Host cache: a writer that lost its slab's descriptor gets it again, before grants in that slab", "[unit]") {
  Node node(CacheOf(2));
  OffloadingWorker writer(node, "writer"), other(node, "other");
  REQUIRE(writer.PrepareStore(writer.Write(0, 4)) == 4);
  const Received first = writer.connection.Take(Body::kSlabGrant);
  writer.Send(writer.Write(4, 6));
  node.WorkAll();
  CHECK(writer.connection.Take(Body::kPrepareStoreReply).message.prepare_store_reply().grants_size() == 2);
  CHECK_FALSE(writer.connection.Has(Body::kSlabGrant));  // once is enough for who has it
  REQUIRE(other.PrepareStore(other.Write(0, 2, 2)) == 2);
  other.connection.sent.clear();
  writer.connection.sent.clear();

  kvmwire::ClientMessage message;
  const std::vector<PublishRecord> records = writer.Write(6, 7);
  message.mutable_prepare_store()->set_region(writer.region.row);
  message.mutable_prepare_store()->set_region_epoch(writer.region.region_epoch);
  message.mutable_prepare_store()->set_records(records.data(), records.size() * sizeof(PublishRecord));
  message.mutable_prepare_store()->set_grants_lost(true);
  node.Handle(writer.id, message);
  node.WorkAll();
  REQUIRE(writer.connection.sent.size() == 2);
  CHECK(writer.connection.sent.back().message.has_prepare_store_reply());
  const Received again = writer.connection.Take(Body::kSlabGrant);
  CHECK(again.message.slab_grant().SerializeAsString() == first.message.slab_grant().SerializeAsString());
  REQUIRE(again.fds.size() == 1);
  CHECK(FileIdOf(again.fds[0].get()) == FileIdOf(first.fds.at(0).get()));
  CHECK(WritableBy(again.fds[0]));
  CHECK(other.connection.sent.empty());
}

TEST_CASE("Host cache: a grant that is not answered in time expires, and its slot waits for its writer", "[unit]") {
  Config config = CacheOf(1);
  config.offload_timeout_ms = 1000;
  Node node(config);
  OffloadingWorker writer(node, "writer");
  const SteadyTime start = std::chrono::steady_clock::now() + seconds(1);
  node.broker.Tick(start);
  const std::vector<PublishRecord> records = writer.Write(0, kSlots);
  const kvmwire::PrepareStoreReply late = writer.Offer(records);
  REQUIRE(late.grants_size() == kSlots);
  // They are being stored: no other client has to store them.
  CHECK(writer.Offer(records).present_size() == kSlots);
  node.broker.Tick(start + milliseconds(999));
  CHECK(Status(node).expired() == 0);
  node.broker.Tick(start + milliseconds(1001));
  CHECK(Status(node).expired() == kSlots);
  // A late copy could still land in any of the slots.
  const kvmwire::PrepareStoreReply refused = writer.Offer(writer.Write(20, 24, 2));
  CHECK(refused.grants_size() == 0);
  CHECK(refused.refused_full() == 4);
  CheckSays(refused.reason(), "--host-cache");
  writer.Done(late);
  CHECK(Status(node).stored() == 0);
  CHECK(Status(node).blocks() == 0);
  CHECK(writer.PrepareStore(records) == kSlots);
  CHECK(Status(node).blocks() == kSlots);
}

TEST_CASE("Host cache: a block that was reused before its copy was done is not offloaded", "[unit]") {
  Node node(CacheOf(2));
  OffloadingWorker writer(node, "writer");
  const std::vector<PublishRecord> records = writer.Write(0, 4);
  writer.region.generations.BeginWrite(1);
  const kvmwire::PrepareStoreReply reply = writer.Offer(records);
  CHECK(reply.grants_size() == 3);
  CHECK(reply.refused_stale() == 1);
  writer.Done(reply, /*stored=*/false);
  CHECK(Status(node).blocks() == 0);
  CHECK(node.Domain().entries() == 0);
}

TEST_CASE("Host cache: another client's answer to a grant, or an answer to another grant, is ignored", "[unit]") {
  Node node(CacheOf(4));
  OffloadingWorker writer(node, "writer"), other(node, "other");
  REQUIRE(other.PrepareStore(other.Write(0, 1, 7)) == 1);
  const kvmwire::PrepareStoreReply reply = writer.Offer(writer.Write(0, 2));
  other.Done(reply);
  CHECK(Status(node).stored() == 1);
  kvmwire::PrepareStoreReply wrong = reply;
  for (kvmwire::StoreGrant& grant : *wrong.mutable_grants()) grant.set_generation(grant.generation() + 2);
  writer.Done(wrong);
  for (kvmwire::StoreGrant& grant : *wrong.mutable_grants()) grant.set_slot(1'000'000);
  writer.Done(wrong);
  for (kvmwire::StoreGrant& grant : *wrong.mutable_grants()) grant.set_region(writer.region.row);
  writer.Done(wrong);
  kvmwire::ClientMessage use;
  for (std::uint32_t i = 0; i < 200; ++i) {
    kvmwire::HostCacheRun& run = *use.mutable_host_cache_use()->add_runs();
    run.set_region(i);
    run.set_region_epoch(i);
    run.set_slot(i * i);
    run.set_blocks(0xFFFFFFFF);
  }
  node.Handle(other.id, use);
  CHECK(Status(node).stored() == 1);
  CHECK(Status(node).hits() == 0);
  writer.Done(reply);
  writer.Done(reply);  // twice is once
  CHECK(Status(node).stored() == 3);
  CHECK(Status(node).blocks() == 3);
}

// Without the limit in PlaceFinder::Find all of them are granted: seen.
TEST_CASE("Host cache: a client that stores nothing of what it was granted is granted so much and no more", "[unit]") {
  constexpr std::uint32_t kOffered = 6000;
  constexpr std::uint64_t kBlock = 512;
  Config config;
  config.host_cache_slab_bytes = 1024 * kBlock;
  config.host_cache_bytes = 8 * config.host_cache_slab_bytes;
  Node node(config);
  OffloadingWorker worker(node, "hoarder", 1000, kOffered, kBlock);
  std::uint32_t granted = 0;
  std::string reason;
  for (std::vector<PublishRecord> records = worker.Write(0, kOffered); !records.empty();) {
    const auto end = records.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(records.size(), kMaxStoreBatch));
    const kvmwire::PrepareStoreReply reply = worker.Offer({records.begin(), end}, true);
    REQUIRE(reply.decided() > 0);
    granted += static_cast<std::uint32_t>(reply.grants_size());
    reason = reply.reason();
    records.erase(records.begin(), records.begin() + reply.decided());
  }
  CHECK(granted == daemon::kMaxGrantsPerClient);
  CheckSays(reason, "too many blocks are granted to this client");
}

TEST_CASE("Host cache: a message that breaks its protocol ends the connection", "[unit]") {
  Node node(CacheOf(4));
  OffloadingWorker writer(node, "writer");
  kvmwire::ClientMessage message;
  SECTION("records that are cut off") { message.mutable_prepare_store()->set_records("123"); }
  SECTION("too many records") {
    message.mutable_prepare_store()->set_records(std::string((kMaxStoreBatch + 1) * sizeof(PublishRecord), '\0'));
  }
  SECTION("too many outcomes") {
    for (std::size_t i = 0; i <= kMaxStoreBatch; ++i) message.mutable_complete_store()->add_outcomes();
  }
  SECTION("too many runs") {
    for (std::size_t i = 0; i <= kMaxHostCacheRuns; ++i) message.mutable_host_cache_use()->add_runs();
  }
  SECTION("an offer before the answer to the last") {
    writer.Send(writer.Write(0, 4));  // waits for memory
    message.mutable_prepare_store()->set_region(writer.region.row);
  }
  KVM_CHECK_ERROR(node.broker.Handle(writer.id, message, {}), Errc::kProtocol, "");
}

TEST_CASE("Host cache: errors name what is missing", "[unit]") {
  SECTION("no host cache") {
    Node node;
    OffloadingWorker writer(node, "writer");
    writer.Send(writer.Write(0, 1));
    CheckSays(writer.connection.TakeError(), "--host-cache");
  }
  SECTION("no such region") {
    Node node(CacheOf(4));
    OffloadingWorker writer(node, "writer"), other(node, "other");
    writer.region.row = other.region.row;
    writer.Send(writer.Write(0, 1));
    CheckSays(writer.connection.TakeError(), "no such region");
    writer.region.region_epoch = other.region.region_epoch;  // another client's
    writer.Send(writer.Write(1, 2));
    CheckSays(writer.connection.TakeError(), "no such region");
  }
  SECTION("more than the machine has") {
    Config config;
    const Result<MemoryRoom> room = MemoryRoom::Read();
    KVM_REQUIRE_OK(room);
    config.host_cache_bytes = room->smallest().limit_bytes + 1;
    KVM_CHECK_ERROR(CheckHostCache(config), Errc::kInvalidArgument, "--host-cache");
  }
  SECTION("more than the machine has beside the registries") {
    Config config;
    const Result<MemoryRoom> room = MemoryRoom::Read();
    KVM_REQUIRE_OK(room);
    config.host_cache_bytes = room->smallest().limit_bytes / 2;
    // A registry is about a twelfth of the machine
    config.max_entries = room->smallest().limit_bytes / 1000;
    config.max_domains = 4;
    KVM_REQUIRE_OK(CheckHostCache(config));
    KVM_CHECK_ERROR(CheckHostCache(config, /*restored=*/true), Errc::kInvalidArgument, "beside 8 registries");
    config.max_domains = 8;
    KVM_CHECK_ERROR(CheckHostCache(config), Errc::kInvalidArgument, "--max-domains");
    config.domain_mode = daemon::DomainMode::kNode;
    KVM_REQUIRE_OK(CheckHostCache(config));
  }
  SECTION("a quota that is less than a slab") {
    Config config = CacheOf(4);
    config.max_host_cache_per_client = kSlab - 1;
    KVM_CHECK_ERROR(CheckHostCache(config), Errc::kInvalidArgument, "--max-host-cache-per-client");
    config.max_host_cache_per_client = kSlab;
    CHECK(CheckHostCache(config).has_value());
  }
}

TEST_CASE("Host cache: a dead writer's slab goes to another process of its user, with its blocks", "[unit]") {
  Config config = CacheOf(2);
  config.domain_mode = daemon::DomainMode::kNode;
  Node node(config);
  std::uint32_t uid = 1000;
  int granted = 0;
  SECTION("of the same user") { granted = kSlots / 2; }
  SECTION("not to another user's") { uid = 1001; }
  OffloadingWorker adopter(node, "adopter", uid);
  OffloadingWorker filler(node, "filler", uid);  // has the other slab
  {
    OffloadingWorker writer(node, "writer");
    REQUIRE(writer.PrepareStore(writer.Write(0, kSlots / 2)) == kSlots / 2);
    REQUIRE(filler.PrepareStore(filler.Write(0, kSlots, 3)) == kSlots);
    // Under way when it dies: the slots are free again.
    REQUIRE(writer.Offer(writer.Write(8, 8 + kSlots / 2, 2)).grants_size() == kSlots / 2);
    node.broker.Leave(writer.id, /*died=*/true);
    node.WorkAll();
  }
  CHECK(Status(node).blocks() == kSlots + kSlots / 2);
  adopter.Send(adopter.Write(0, kSlots / 2, 5));
  node.WorkAll();
  if (granted > 0) {
    const kvmwire::PrepareStoreReply reply = adopter.connection.Take(Body::kPrepareStoreReply).message.prepare_store_reply();
    CHECK(reply.grants_size() == granted);
    adopter.Done(reply);
    CHECK(adopter.connection.Has(Body::kSlabGrant));
    CHECK(Status(node).blocks() == 2 * kSlots);
    CHECK(Status(node).evicted() == 0);
    return;
  }
  // Another user's process gets none of that memory: the slab goes, and new memory comes in its
  // place.
  CHECK_FALSE(adopter.connection.Has(Body::kSlabGrant));
  for (const OffloadingWorker* importer : {&adopter, &filler}) {
    for (const Received& received : importer->connection.sent) {
      if (received.message.body_case() != Body::kRegionWithdraw || !received.message.region_withdraw().wants_ack()) continue;
      kvmwire::ClientMessage ack;
      ack.mutable_withdraw_ack()->set_region(received.message.region_withdraw().region());
      ack.mutable_withdraw_ack()->set_region_epoch(received.message.region_withdraw().region_epoch());
      node.Handle(importer->id, ack);
    }
  }
  node.WorkAll();
  node.broker.Tick(std::chrono::steady_clock::now());
  node.WorkAll();
  CHECK(adopter.connection.Take(Body::kPrepareStoreReply).message.prepare_store_reply().grants_size() == kSlots / 2);
  CHECK(Status(node).evicted() == kSlots / 2);
}

TEST_CASE("Host cache: a late worker gets its share, from workers that have more than theirs", "[unit]") {
  Node node(CacheOf(4));
  OffloadingWorker rich(node, "rich"), late(node, "late");
  // As many as there is memory for at once
  REQUIRE(rich.PrepareStore(rich.Write(0, 4 * kSlots)) == kSlots);
  for (int slab = 1; slab < 4; ++slab) REQUIRE(rich.PrepareStore(rich.Write(slab * kSlots, (slab + 1) * kSlots)) == kSlots);
  CHECK(Status(node).slabs() == 4);
  const std::vector<PublishRecord> records = late.Write(0, kSlots, 2);
  late.Send(records);
  // Importers unmap the slab that is dropped.
  const auto settle = [&] {
    for (int i = 0; i < 3; ++i) {
      node.WorkAll();
      node.broker.Tick(std::chrono::steady_clock::now() + seconds(2));
    }
    node.WorkAll();
  };
  settle();
  const kvmwire::PrepareStoreReply reply = late.connection.Take(Body::kPrepareStoreReply).message.prepare_store_reply();
  CHECK(reply.grants_size() == kSlots);
  late.Done(reply);
  CHECK(Status(node).blocks() == 4 * kSlots);
  CHECK(Status(node).evicted() == kSlots);
}

TEST_CASE("Host cache: blocks that leave it for others are replaced, and none is evicted for lack of room in the index", "[unit]") {
  Config config = CacheOf(1);
  config.host_cache_policy = policy::PolicyKind::kLru;
  Node node(config);
  OffloadingWorker writer(node, "writer");
  REQUIRE(writer.PrepareStore(writer.Write(0, kSlots)) == kSlots);
  REQUIRE(writer.PrepareStore(writer.Write(kSlots, 2 * kSlots)) == kSlots);
  REQUIRE(Status(node).evicted() == kSlots);
  CHECK(node.Domain().counters().replaced() == kSlots);
  CHECK(node.Domain().counters().evicted() == 0);
}

TEST_CASE("Host cache: pinned blocks stay when others have to leave", "[unit]") {
  const auto policy = GENERATE(policy::PolicyKind::kLru, policy::PolicyKind::kS3Fifo, policy::PolicyKind::kHitDensity);
  Config config = CacheOf(1);
  config.host_cache_policy = policy;
  config.max_entries = 10'000;
  struct Nobody final : daemon::HostCacheEvents {
    void SlabOpened(daemon::Slab&) override {}
    void SlabGranted(daemon::Slab&) override {}
    void SlabClosing(daemon::Domain&, daemon::Region&) override {}
    void WorkToDo() override {}
  } host;
  daemon::DescriptorQuota descriptors(config, false);
  Result<std::unique_ptr<daemon::Domain>> domain = daemon::Domain::Create("test", config, descriptors);
  KVM_REQUIRE_OK(domain);
  KVM_REQUIRE_OK((*domain)->models().Declare(1, 1000, LlamaSpec()));
  WireRegion region("pool", LlamaSpec(), 64, kBlockBytes);
  std::vector<PeerFd> fds;
  for (const int fd : region.fds()) fds.emplace_back(UniqueFd(::dup(fd)));
  Result<std::unique_ptr<daemon::Region>> prepared = (*domain)->PrepareRegion(1, region.descriptor, std::move(fds));
  KVM_REQUIRE_OK(prepared);
  Result<daemon::Region*> source = (*domain)->AddRegion({1, 100, 1000}, std::move(*prepared));
  KVM_REQUIRE_OK(source);
  daemon::HugePagesNow huge_pages;
  daemon::FreeNow freer;
  daemon::HostCache cache(config, host, huge_pages, freer);
  // Of each block that was offloaded: slab and slot
  std::map<std::uint32_t, std::pair<daemon::Slab*, std::uint32_t>> at;
  const auto offload = [&](std::uint32_t block) {
    PublishRecord record = region.Write(block, {block + 1, 1});
    for (int tries = 0; tries < 2; ++tries) {
      const auto decision = cache.Offer({1, 1000}, **domain, **source, std::span(&record, 1), false);
      while (cache.Work()) continue;
      kvmwire::CompleteStore done;
      for (const auto& grant : decision.grants) {
        kvmwire::StoreOutcome& outcome = *done.add_outcomes();
        outcome.set_region(grant.slab->region->row);
        outcome.set_region_epoch(grant.slab->region->info.region_epoch);
        outcome.set_slot(grant.slot);
        outcome.set_generation(grant.write);
        outcome.set_stored(true);
        at[block] = {grant.slab, grant.slot};
      }
      int next = 0;
      while (!cache.Done(1, **domain, done, next, daemon::WorkBudget())) continue;
      if (decision.decided == 1) return decision.grants.size();
    }
    return std::size_t{0};
  };
  const auto pin = [&](std::uint32_t block) { return at[block].first->Pin(at[block].second); };
  for (std::uint32_t block = 0; block < kSlots; ++block) REQUIRE(offload(block) == 1);
  for (std::uint32_t block = 0; block < kSlots - 1; ++block) REQUIRE(pin(block));
  // One slot is left to take turns in.
  for (std::uint32_t block = kSlots; block < 2 * kSlots; ++block) {
    CHECK(offload(block) == 1);
    CHECK(at[block] == at[kSlots - 1]);
  }
  for (std::uint32_t block = 0; block < kSlots - 1; ++block) CHECK(pin(block));
  CHECK(pin(2 * kSlots - 1));
  CHECK(offload(30) == 0);  // all are pinned
  at[2 * kSlots - 1].first->Unpin(at[2 * kSlots - 1].second);
  CHECK(offload(31) == 1);
  CHECK_FALSE(at[0].first->Pinned(at[31].second));
  CHECK(at[0].first->Pinned(at[0].second));
}

TEST_CASE("Host cache: it has a replica of a block that eight workers hold", "[unit]") {
  Node node(CacheOf(2));
  std::vector<std::unique_ptr<OffloadingWorker>> workers;
  std::vector<PublishRecord> records;
  for (int i = 0; i < 8; ++i) {
    workers.push_back(std::make_unique<OffloadingWorker>(node, "worker-" + std::to_string(i)));
    records = workers.back()->Write(0, 1);
    node.Handle(workers.back()->id, workers.back()->region.PublishMessage(records));
  }
  CHECK(node.Domain().entries() == 8);
  CHECK(workers.back()->PrepareStore(records) == 1);
  CHECK(node.Domain().entries() == 8);
  for (const auto& worker : workers) node.broker.Leave(worker->id, true);
  node.WorkAll();
  CHECK(node.Domain().entries() == 1);
  CHECK(Status(node).blocks() == 1);
}

TEST_CASE("Host cache: a worker whose blocks have another size ends the slabs of the old size", "[unit]") {
  Node node(CacheOf(4));
  {
    OffloadingWorker before(node, "before");
    REQUIRE(before.PrepareStore(before.Write(0, 4)) == 4);
    node.broker.Leave(before.id, true);
    node.WorkAll();
  }
  CHECK(node.Domain().entries() == 4);
  OffloadingWorker after(node, "after", 1000, 64, 2 * kBlockBytes);
  node.WorkAll();
  CHECK(node.Domain().entries() == 0);
  CHECK(Status(node).blocks() == 0);
  CHECK(after.PrepareStore(after.Write(0, 2)) == 2);
}

TEST_CASE("Host cache: a slab's blocks are unreadable before its memory is freed", "[unit]") {
  Node node(CacheOf(1));
  FakeConnection importer_peer;
  node.Join(importer_peer, 1);
  OffloadingWorker old(node, "old");
  REQUIRE(old.PrepareStore(old.Write(0, 5)) == 5);
  Received announced = importer_peer.Take(Body::kRegionAnnounce);
  while (!announced.message.region_announce().host_cache()) announced = importer_peer.Take(Body::kRegionAnnounce);
  const Result<MappedMemory> table = MappedMemory::Attach(announced.fds.at(0).get(), GenerationTableBytes(kSlots));
  KVM_REQUIRE_OK(table);
  const Result<GenerationReader> generations = GenerationReader::Open({table->data(), table->size()}, kSlots);
  KVM_REQUIRE_OK(generations);
  std::size_t readable = 0;
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) readable += IsReadable(generations->Current(slot));
  CHECK(readable == 5);
  node.broker.Leave(old.id, /*died=*/true);
  node.WorkAll();
  // Blocks of another size take their place.
  const OffloadingWorker other(node, "new", 1000, 8, 2 * kBlockBytes);
  CHECK(node.Domain(1000).host_cache().slabs() == 0);
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) CHECK(IsEnded(generations->Current(slot)));
}

TEST_CASE("Host cache: keys that were seen are remembered, as many as there is room for", "[unit]") {
  daemon::SeenKeys seen(4096);
  Random random(1);
  std::vector<BlockKey> keys;
  for (int i = 0; i < 1000; ++i) keys.push_back({random.Next(), random.Next()});
  for (const BlockKey& key : keys) CHECK_FALSE(seen.Add(key));
  int remembered = 0;
  for (const BlockKey& key : keys) remembered += seen.Add(key);
  CHECK(remembered > 990);
  for (int i = 0; i < 100'000; ++i) seen.Add({random.Next(), random.Next()});
  remembered = 0;
  for (const BlockKey& key : keys) remembered += seen.Add(key);
  CHECK(remembered < 10);
}

}  // namespace
}  // namespace kvm::test
