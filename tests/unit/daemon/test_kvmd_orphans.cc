// What kvmd does with the regions of clients that have gone. The broker is driven by hand: no
// socket, and a clock that the test turns.
#include <fcntl.h>
#include <unistd.h>

#include "proto/base/memory_room.h"
#include "tests/support/broker/broker_node.h"
#include "tests/support/process/fork.h"
#include "tests/support/process/open_fds.h"

namespace kvm::test {
namespace {

TEST_CASE("kvmd orphans: a dead worker's blocks are still found, announced to new clients, and freed when their time is over", "[unit]") {
  Node node(With(&Config::orphan_ttl_s, 100u));
  const int fds = OpenFds();
  FakeConnection owner_peer, importer_peer;
  const ClientId owner = node.Join(owner_peer);
  {
    WireRegion region = node.Granted(owner, owner_peer, "pool", 50);
    node.Register(owner, owner_peer, region);
    node.Publish(owner, owner_peer, region);
  }
  owner_peer.sent.clear();
  node.broker.Leave(owner, /*died=*/true);
  node.WorkAll();
  CHECK(node.Domain().entries() == 50);
  CHECK(node.Domain().orphans() == 1);
  CHECK(node.Domain().orphan_bytes() == 50 * 64);
  CHECK(node.Domain().regions() == 0);

  const ClientId importer = node.Join(importer_peer);
  const Received announce = importer_peer.Take(Body::kRegionAnnounce);
  REQUIRE(announce.fds.size() == 2);
  for (const UniqueFd& fd : announce.fds) CHECK((::fcntl(fd.get(), F_GETFL) & O_ACCMODE) == O_RDONLY);

  const SteadyTime now = std::chrono::steady_clock::now();
  node.broker.Tick(now + seconds(99));
  CHECK(node.Domain().entries() == 50);
  CHECK_FALSE(importer_peer.Has(Body::kRegionWithdraw));
  node.broker.Tick(now + seconds(101));
  node.WorkAll();
  CHECK(node.Domain().entries() == 0);
  CHECK(node.Domain().orphans() == 0);
  CHECK(importer_peer.Take(Body::kRegionWithdraw).message.region_withdraw().owner_died());
  node.broker.Leave(importer, false);
  importer_peer.sent.clear();
  // The domain's registry came, too
  CHECK(OpenFds() <= fds + static_cast<int>(announce.fds.size()) + 1);
}

TEST_CASE("kvmd orphans: cuda_ipc memory is not kept, nor regions for which owner or configuration say so", "[unit]") {
  for (const char* why : {"owner", "ttl", "max", "cuda_ipc"}) {
    INFO(why);
    Config config;
    if (why == std::string("ttl")) config.orphan_ttl_s = 0;
    if (why == std::string("max")) config.max_orphans = 0;
    Node node(config);
    FakeConnection connection;
    const ClientId owner = node.Join(connection);
    WireRegion region = node.Granted(owner, connection, "pool", 8);
    if (why == std::string("owner")) region.descriptor.set_outlives_owner(false);
    if (why == std::string("cuda_ipc")) {
      region.descriptor.set_handle_kind(2);
      region.descriptor.mutable_segments(0)->set_handle(std::string(64, 'h'));
      node.Handle(owner, region.RegisterMessage(), {region.generation_memory.fd()});
      region.row = connection.Take(Body::kRegisterRegionReply).message.register_region_reply().region();
    } else {
      node.Register(owner, connection, region);
    }
    node.broker.Leave(owner, true);
    node.WorkAll();
    CHECK(node.Domain().orphans() == 0);
    CHECK(node.Domain().entries() == 0);
  }
}

TEST_CASE("kvmd orphans: an adoption returns the list of blocks that are still readable, in the same row", "[unit]") {
  Node node;
  FakeConnection first_peer, second_peer, importer_peer;
  const ClientId first = node.Join(first_peer), importer = node.Join(importer_peer, 1);
  WireRegion region = node.Granted(first, first_peer, "pool", 20);
  node.Register(first, first_peer, region);
  node.Publish(first, first_peer, region);
  importer_peer.sent.clear();
  region.generations.BeginWrite(7);  // it died while it wrote this one
  node.broker.Leave(first, true);
  const ClientId second = node.Join(second_peer, kDeadPid + 1);
  second_peer.sent.clear();
  node.Handle(second, Node::Adopt(region));
  Received received = second_peer.Take(Body::kAdoptRegionReply);
  const kvmwire::AdoptRegionReply& reply = received.message.adopt_region_reply();
  CHECK(reply.region() == region.row);
  CHECK(reply.region_epoch() == region.region_epoch);
  REQUIRE(received.fds.size() == 3);
  REQUIRE(reply.records() == 19);
  const Result<MappedMemory> list = MappedMemory::Attach(received.fds[2].get(), 19 * sizeof(PublishRecord));
  KVM_REQUIRE_OK(list);
  for (std::uint32_t i = 0; i < 19; ++i) {
    PublishRecord record;
    std::memcpy(&record, list->data() + i * sizeof(record), sizeof(record));
    CHECK(record.block == (i < 7 ? i : i + 1));
    CHECK(record.key == BlockKey{record.block, 1});
    CHECK(record.generation == region.generations.Current(record.block));
  }
  // Importers notice nothing, and see what the new owner does: it is the same table.
  CHECK(importer_peer.sent.empty());
  Result<OwnedMemory> table = OwnedMemory::Take(std::move(received.fds[0]), GenerationTableBytes(20));
  KVM_REQUIRE_OK(table);
  Result<GenerationWriter> writer = GenerationWriter::Open({table->data(), table->size()}, 20);
  KVM_REQUIRE_OK(writer);
  writer->BeginWrite(3);
  CHECK((region.generations.Current(3) & 1) == 1);
  // The new owner publishes and takes the region away; the importer is asked then, the new owner is
  // not.
  node.Handle(second, region.PublishMessage({region.Write(3, {333, 1})}));
  CHECK(second_peer.Take(Body::kPublishAck).message.publish_ack().inserted() == 1);
  node.Handle(second, region.UnregisterMessage());
  CHECK(importer_peer.Has(Body::kRegionWithdraw));
  CHECK_FALSE(second_peer.Has(Body::kRegionWithdraw));
  static_cast<void>(importer);
}

TEST_CASE("kvmd orphans: never adopted while the process that writes it may run", "[unit]") {
  Node node;
  FakeConnection first_peer, second_peer;
  Sleeper process;
  const ClientId first = node.Join(first_peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd());
  WireRegion region = node.Granted(first, first_peer, "pool", 4);
  node.Register(first, first_peer, region);
  const ClientId second = node.Join(second_peer, 1);
  node.Handle(second, Node::Adopt(region));
  CheckSays(second_peer.TakeError(), "belongs to process");
  node.broker.Leave(first, /*died=*/false);
  node.Handle(second, Node::Adopt(region));
  CheckSays(second_peer.TakeError(), "has not ended");
  // A new region with its name does not displace it either.
  WireRegion other = node.Granted(second, second_peer, "pool", 4);
  node.Handle(second, other.RegisterMessage(), other.fds());
  CheckSays(second_peer.TakeError(), "still runs");
  process.Kill();
  node.Handle(second, Node::Adopt(region));
  CHECK(second_peer.Take(Body::kAdoptRegionReply).message.adopt_region_reply().region() == region.row);
}

TEST_CASE("kvmd orphans: one whose process can't be watched serves, and is not adopted", "[unit]") {
  Node node;
  FakeConnection first_peer, second_peer;
  const ClientId first = node.Join(first_peer);
  WireRegion region = node.Granted(first, first_peer, "pool", 4);
  node.Register(first, first_peer, region);
  node.Publish(first, first_peer, region);
  node.broker.Leave(first, /*died=*/false);
  const ClientId second = node.Join(second_peer, 1);
  node.Handle(second, Node::Adopt(region));
  CheckSays(second_peer.TakeError(), "can't see whether");
  CHECK(node.Domain().entries() == 4);
}

TEST_CASE("kvmd orphans: an adoption of a region that differs is refused, the field named, and the region stays", "[unit]") {
  Node node;
  FakeConnection first_peer, second_peer, stranger_peer;
  const ClientId first = node.Join(first_peer);
  WireRegion region = node.Granted(first, first_peer, "pool", 4);
  WireRegion sealed("sealed", LlamaSpec(), 4);
  sealed.descriptor.set_outlives_owner(true);
  node.Register(first, first_peer, region);
  node.Register(first, first_peer, sealed);
  node.broker.Leave(first, true);
  const ClientId second = node.Join(second_peer, 1), stranger = node.Join(stranger_peer, 2, 2000);
  const auto refused = [&](const kvmwire::ClientMessage& message, const std::string& why) {
    node.Handle(second, message);
    CheckSays(second_peer.TakeError(), why);
  };
  kvmwire::ClientMessage wrong = Node::Adopt(region);
  wrong.mutable_adopt_region()->mutable_expected()->set_block_count(5);
  refused(wrong, "number of blocks");
  wrong = Node::Adopt(region);
  wrong.mutable_adopt_region()->mutable_expected()->set_shard(0, 1);
  refused(wrong, "shard");
  wrong = Node::Adopt(region);
  wrong.mutable_adopt_region()->mutable_expected()->mutable_parts(0)->set_block_stride(128);
  refused(wrong, "geometry");
  wrong = Node::Adopt(region);
  wrong.mutable_adopt_region()->mutable_expected()->mutable_segments(0)->set_size_bytes(8192);
  refused(wrong, "size of segment 0");
  wrong = Node::Adopt(region);
  wrong.mutable_adopt_region()->mutable_expected()->set_device_uuid(std::string(16, 'x'));
  refused(wrong, "device");
  wrong = Node::Adopt(region);
  wrong.mutable_adopt_region()->mutable_expected()->set_fingerprint(std::string(32, 'x'));
  refused(wrong, "another model");
  wrong = Node::Adopt(region);
  wrong.mutable_adopt_region()->mutable_expected()->set_name("nobody's");
  refused(wrong, "none without an owner");
  refused(Node::Adopt(sealed), "nobody else can write it");
  node.Handle(stranger, Node::Adopt(region));
  CheckSays(stranger_peer.TakeError(), "none without an owner");
  CHECK(node.Domain().orphans() == 2);
  node.Handle(second, Node::Adopt(region));
  second_peer.Take(Body::kAdoptRegionReply);
}

TEST_CASE("kvmd orphans: the process that was only away gets its region back, in its row, with its entries", "[unit]") {
  Node node;
  FakeConnection before_peer, after_peer, importer_peer;
  Sleeper process;
  const ClientId before = node.Join(before_peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd());
  WireRegion region = node.Granted(before, before_peer, "pool", 10);
  node.Register(before, before_peer, region);
  node.Publish(before, before_peer, region);
  node.Join(importer_peer, 1);
  importer_peer.sent.clear();
  const std::uint32_t row = region.row, epoch = region.region_epoch;
  node.broker.Leave(before, false);
  const ClientId after = node.Join(after_peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd());
  after_peer.sent.clear();
  node.Register(after, after_peer, region);
  CHECK(region.row == row);
  CHECK(region.region_epoch == epoch);
  CHECK(node.Domain().entries() == 10);
  CHECK(node.Domain().orphans() == 0);
  CHECK(importer_peer.sent.empty());
  node.broker.Leave(after, false);
  // Another process is not taken for it, though it has that memory.
  FakeConnection other_peer;
  const ClientId another = node.Join(other_peer, 1);
  node.Handle(another, region.RegisterMessage(), region.fds());
  CheckSays(other_peer.TakeError(), "which is not connected but still runs");
  // With other memory under the name, the old one goes.
  FakeConnection last_peer;
  const ClientId last = node.Join(last_peer, process.pid());
  WireRegion other = node.Granted(last, last_peer, "pool", 10);
  node.Register(last, last_peer, other);
  node.WorkAll();
  CHECK(other.region_epoch != epoch);
  CHECK(node.Domain().entries() == 0);
  CHECK(importer_peer.Has(Body::kRegionWithdraw));
}

TEST_CASE("kvmd orphans: a new region with the same name, or with another block size, takes a dead worker's place", "[unit]") {
  for (const bool same_name : {true, false}) {
    Node node;
    FakeConnection first_peer, second_peer;
    const ClientId first = node.Join(first_peer);
    WireRegion region = node.Granted(first, first_peer, "pool", 4, 64);
    node.Register(first, first_peer, region);
    node.Publish(first, first_peer, region);
    node.broker.Leave(first, true);
    const ClientId second = node.Join(second_peer, 1);
    WireRegion other = node.Granted(second, second_peer, same_name ? "pool" : "other", 4, same_name ? 64 : 128);
    node.Register(second, second_peer, other);
    node.WorkAll();
    CHECK(node.Domain().orphans() == 0);
    CHECK(node.Domain().entries() == 0);
    CHECK(node.Domain().regions() == 1);
  }
}

TEST_CASE("kvmd orphans: the oldest is freed if there are too many, or few rows are left", "[unit]") {
  Config config;
  SECTION("--max-orphans") { config.max_orphans = 3; }
  // Two rows stay free, one of them for the new region
  SECTION("--max-regions") { config.max_regions = 6; }
  Node node(config);
  for (std::uint32_t i = 0; i < 6; ++i) {
    FakeConnection connection;
    const ClientId owner = node.Join(connection, kDeadPid + i);
    WireRegion region = node.Granted(owner, connection, "pool-" + std::to_string(i), 4);
    node.Register(owner, connection, region);
    node.Publish(owner, connection, region, i + 1);
    node.broker.Leave(owner, true);
    node.WorkAll();
  }
  FakeConnection connection;
  const ClientId adopter = node.Join(connection, 1);
  WireRegion newest("pool-5", LlamaSpec(), 4), oldest("pool-0", LlamaSpec(), 4);
  CHECK(node.Domain().orphans() >= 3);
  CHECK(node.Domain().orphans() <= 4);
  node.Handle(adopter, Node::Adopt(oldest));
  CheckSays(connection.TakeError(), "none without an owner");
  node.Handle(adopter, Node::Adopt(newest));
  connection.Take(Body::kAdoptRegionReply);
}

TEST_CASE("kvmd orphans: adopting counts against the new owner's quotas", "[unit]") {
  Node node(With(&Config::max_blocks_per_client, std::uint64_t{10}));
  FakeConnection first_peer, second_peer;
  const ClientId first = node.Join(first_peer);
  WireRegion region = node.Granted(first, first_peer, "pool", 8);
  node.Register(first, first_peer, region);
  node.broker.Leave(first, true);
  const ClientId second = node.Join(second_peer, 1);
  WireRegion own = node.Granted(second, second_peer, "own", 4);
  node.Register(second, second_peer, own);
  node.Handle(second, Node::Adopt(region));
  CheckSays(second_peer.TakeError(), "--max-blocks-per-client");
  node.Handle(second, own.UnregisterMessage());
  node.WorkAll();
  node.Handle(second, Node::Adopt(region));
  second_peer.Take(Body::kAdoptRegionReply);
  WireRegion more = node.Granted(second, second_peer, "more", 3);
  node.Handle(second, more.RegisterMessage(), more.fds());
  CheckSays(second_peer.TakeError(), "--max-blocks-per-client");
}

TEST_CASE("kvmd orphans: an owner that has ended its blocks leaves none, even if kvmd was not told", "[unit]") {
  Node node;
  FakeConnection owner_peer, importer_peer;
  const ClientId owner = node.Join(owner_peer);
  node.Join(importer_peer, 1);
  WireRegion region = node.Granted(owner, owner_peer, "pool", 8);
  node.Register(owner, owner_peer, region);
  node.Publish(owner, owner_peer, region);
  region.generations.EndAll();
  SECTION("its process ends, and its message comes too late") {
    node.broker.Leave(owner, /*died=*/true);
    node.WorkAll();
    CHECK(node.Domain().orphans() == 0);
    CHECK(node.Domain().entries() == 0);
    CHECK(importer_peer.Has(Body::kRegionWithdraw));
  }
  SECTION("it was killed before it had ended all of them") {
    region.generations.TakeUp(0);
    node.broker.Leave(owner, /*died=*/true);
    node.WorkAll();
    CHECK(node.Domain().orphans() == 1);
    FakeConnection adopter_peer;
    const ClientId adopter = node.Join(adopter_peer, kDeadPid + 1);
    node.Handle(adopter, Node::Adopt(region));
    CHECK(adopter_peer.Take(Body::kAdoptRegionReply).message.adopt_region_reply().records() == 0);
  }
}

TEST_CASE("kvmd orphans: one whose owner ends its blocks while not connected can't be adopted, and is freed", "[unit]") {
  Node node;
  FakeConnection owner_peer, importer_peer, adopter_peer;
  Sleeper process;
  const ClientId owner = node.Join(owner_peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd(), /*instance=*/7);
  node.Join(importer_peer, 1);
  WireRegion region = node.Granted(owner, owner_peer, "pool", 8);
  node.Register(owner, owner_peer, region);
  node.Publish(owner, owner_peer, region);
  node.broker.Leave(owner, /*died=*/false);
  REQUIRE(node.Domain().orphans() == 1);
  region.generations.EndAll();
  SECTION("not by the client that had it") {
    const ClientId again = node.Join(adopter_peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd(), /*instance=*/7);
    node.Handle(again, Node::Adopt(region));
    CheckSays(adopter_peer.TakeError(), "has given it up");
    // Nor does it go on in it.
    node.Handle(again, region.RegisterMessage(), region.fds());
    CHECK(adopter_peer.Take(Body::kRegisterRegionReply).message.register_region_reply().region_epoch() != region.region_epoch);
  }
  SECTION("another region takes its name, though that process runs") {
    const ClientId adopter = node.Join(adopter_peer, 1);
    WireRegion other = node.Granted(adopter, adopter_peer, "pool", 8);
    node.Register(adopter, adopter_peer, other);
    CHECK(node.Domain().orphans() == 0);
  }
  SECTION("by itself") {
    node.broker.Tick(std::chrono::steady_clock::now());
    node.WorkAll();
    CHECK(node.Domain().orphans() == 0);
    CHECK(node.Domain().entries() == 0);
    CHECK(importer_peer.Has(Body::kRegionWithdraw));
  }
}

TEST_CASE("kvmd orphans: reclaimed by name, device and age, once importers have unmapped them", "[unit]") {
  Node node;
  FakeConnection importer_peer, operator_peer;
  const ClientId importer = node.Join(importer_peer, 1);
  std::vector<WireRegion> regions;
  for (const char* name : {"a", "b"}) {
    FakeConnection connection;
    const ClientId owner = node.Join(connection);
    regions.push_back(node.Granted(owner, connection, name, 4));
    if (regions.size() == 2) regions.back().descriptor.set_device_uuid(std::string(16, 'g'));
    node.Register(owner, connection, regions.back());
    node.Publish(owner, connection, regions.back(), regions.size());
    node.broker.Leave(owner, true);
  }
  const ClientId asking = node.Join(operator_peer, 2, 1000, kvmwire::OBSERVER);
  kvmwire::ClientMessage request;
  kvmwire::Reclaim& reclaim = *request.mutable_reclaim();
  request.set_request_id(1);
  const auto ask = [&]() -> kvmwire::ReclaimReply {
    node.Handle(asking, request);
    node.WorkAll();
    return operator_peer.Take(Body::kReclaimReply).message.reclaim_reply();
  };
  reclaim.set_name("c");
  CHECK(ask().regions() == 0);
  reclaim.set_name("");
  reclaim.set_min_age_s(1000);
  CHECK(ask().regions() == 0);
  reclaim.set_min_age_s(0);
  reclaim.set_device_uuid(std::string(16, 'x'));
  CHECK(ask().regions() == 0);
  CHECK(node.Domain().orphans() == 2);

  reclaim.set_device_uuid(std::string(16, 'g'));
  node.Handle(asking, request);
  node.WorkAll();
  CHECK_FALSE(operator_peer.Has(Body::kReclaimReply));  // an importer has it mapped
  CHECK(node.Domain().orphans() == 1);
  kvmwire::ClientMessage ack;
  ack.mutable_withdraw_ack()->set_region(regions[1].row);
  ack.mutable_withdraw_ack()->set_region_epoch(regions[1].region_epoch);
  node.Handle(importer, ack);
  node.WorkAll();
  const kvmwire::ReclaimReply one = operator_peer.Take(Body::kReclaimReply).message.reclaim_reply();
  CHECK(one.regions() == 1);
  CHECK(one.blocks() == 4);
  CHECK(one.bytes() == 4 * 64);
  CHECK(one.still_mapped() == 0);

  // An importer that does not answer is waited for so long and no longer.
  reclaim.set_device_uuid(std::string(16, '\0'));
  node.Handle(asking, request);
  node.WorkAll();
  CHECK_FALSE(operator_peer.Has(Body::kReclaimReply));
  node.broker.Tick(std::chrono::steady_clock::now() + seconds(2));
  node.WorkAll();
  CHECK(operator_peer.Take(Body::kReclaimReply).message.reclaim_reply().still_mapped() == 1);
  CHECK(node.Domain().orphans() == 0);
  CHECK(node.Domain().entries() == 0);
}

TEST_CASE("kvmd orphans: users reclaim their own, root those of all users", "[unit]") {
  Node node;
  FakeConnection owner_peer, stranger_peer, root_peer;
  const ClientId owner = node.Join(owner_peer);
  WireRegion region = node.Granted(owner, owner_peer, "pool", 4);
  node.Register(owner, owner_peer, region);
  node.broker.Leave(owner, true);
  kvmwire::ClientMessage request;
  request.mutable_reclaim();
  const ClientId stranger = node.Join(stranger_peer, 1, 2000);
  node.Handle(stranger, request);
  CHECK(stranger_peer.Take(Body::kReclaimReply).message.reclaim_reply().regions() == 0);
  const ClientId root = node.Join(root_peer, 2, 0);
  node.Handle(root, request);
  node.WorkAll();
  CHECK(root_peer.Take(Body::kReclaimReply).message.reclaim_reply().regions() == 1);
}

TEST_CASE("kvmd orphans: a request for a region's memory is answered once the dead owner's memory is unmapped", "[unit]") {
  Node node;
  FakeConnection first_peer, importer_peer, other_peer, second_peer;
  const ClientId first = node.Join(first_peer), importer = node.Join(importer_peer, 1), other = node.Join(other_peer, kDeadPid + 2, 1001);
  WireRegion pool = node.Granted(first, first_peer, "pool", 4), kept = node.Granted(first, first_peer, "kept", 4);
  node.Register(first, first_peer, pool);
  node.Register(first, first_peer, kept);
  WireRegion others = node.Granted(other, other_peer, "pool", 4);
  node.Register(other, other_peer, others);
  node.broker.Leave(first, true);
  node.broker.Leave(other, true);
  const ClientId second = node.Join(second_peer, kDeadPid + 1);
  kvmwire::ClientMessage message;
  message.set_request_id(5);
  kvmwire::AllocateMemory& request = *message.mutable_allocate_memory();
  request.add_size_bytes(4096);
  *request.mutable_for_region() = pool.descriptor;
  SECTION("of the same name") {}
  SECTION("of other blocks of the same model and shard") {
    request.mutable_for_region()->set_name("new");
    for (kvmwire::GeometryPart& part : *request.mutable_for_region()->mutable_parts()) {
      part.set_chunk_bytes(32);
      part.set_block_stride(32);
    }
  }
  const bool all = request.for_region().name() == "new";
  importer_peer.sent.clear();
  second_peer.sent.clear();
  node.Handle(second, message);
  node.WorkAll();
  CHECK_FALSE(second_peer.Has(Body::kReclaimReply));  // an importer has it mapped
  for (int left = all ? 2 : 1; left > 0; --left) {
    const kvmwire::RegionWithdraw withdraw = importer_peer.Take(Body::kRegionWithdraw).message.region_withdraw();
    kvmwire::ClientMessage ack;
    ack.mutable_withdraw_ack()->set_region(withdraw.region());
    ack.mutable_withdraw_ack()->set_region_epoch(withdraw.region_epoch());
    node.Handle(importer, ack);
  }
  CHECK_FALSE(importer_peer.Has(Body::kRegionWithdraw));
  // The second one's own acknowledgements: it had been told of them, too.
  while (second_peer.Has(Body::kRegionWithdraw)) {
    const kvmwire::RegionWithdraw withdraw = second_peer.Take(Body::kRegionWithdraw).message.region_withdraw();
    kvmwire::ClientMessage ack;
    ack.mutable_withdraw_ack()->set_region(withdraw.region());
    ack.mutable_withdraw_ack()->set_region_epoch(withdraw.region_epoch());
    node.Handle(second, ack);
  }
  node.WorkAll();
  const Received answer = second_peer.Take(Body::kReclaimReply);
  CHECK(answer.message.request_id() == 5);
  CHECK(answer.message.reclaim_reply().regions() == (all ? 2 : 1));
  CHECK(answer.message.reclaim_reply().still_mapped() == 0);
  CHECK(answer.fds.size() == 1);
  CHECK(node.Domain().orphans() == (all ? 0 : 1));
  CHECK(node.Domain(1001).orphans() == 1);
}

TEST_CASE("kvmd orphans: memory for a region waits for importers until the deadline, and a living owner's region stays", "[unit]") {
  Node node;
  FakeConnection first_peer, importer_peer, second_peer;
  Sleeper process;
  const ClientId first = node.Join(first_peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd());
  node.Join(importer_peer, 1);
  WireRegion pool = node.Granted(first, first_peer, "pool", 4);
  node.Register(first, first_peer, pool);
  node.broker.Leave(first, false);
  const ClientId second = node.Join(second_peer, kDeadPid + 1);
  second_peer.sent.clear();
  kvmwire::ClientMessage message;
  *message.mutable_allocate_memory()->mutable_for_region() = pool.descriptor;
  message.mutable_allocate_memory()->set_ack_timeout_ms(1000);
  node.Handle(second, message);
  // Its process runs, so its memory is not freed
  CHECK(second_peer.Take(Body::kEmpty).fds.empty());
  CHECK(node.Domain().orphans() == 1);
  process.Kill();
  node.Handle(second, message);
  node.WorkAll();
  CHECK_FALSE(second_peer.Has(Body::kReclaimReply));
  node.broker.Tick(std::chrono::steady_clock::now() + seconds(2));
  CHECK(second_peer.Take(Body::kReclaimReply).message.reclaim_reply().still_mapped() == 1);
}

TEST_CASE("kvmd orphans: pieces of memory that are too much together are refused, though each would fit", "[unit]") {
  const Result<InstalledMemory> installed = ReadInstalledMemory();
  KVM_REQUIRE_OK(installed);
  Node node;
  FakeConnection connection;
  const ClientId worker = node.Join(connection);
  kvmwire::ClientMessage message;
  for (int i = 0; i < 100; ++i) message.mutable_allocate_memory()->add_size_bytes(installed->bytes / 50);
  node.Handle(worker, message);
  CheckSays(connection.TakeError(), "no memory for the bytes that client asks for");
}

TEST_CASE("kvmd orphans: the status lists them on request, with the time that they have left", "[unit]") {
  Node node;
  FakeConnection first_peer, observer_peer;
  const ClientId first = node.Join(first_peer);
  WireRegion pool = node.Granted(first, first_peer, "pool", 4);
  node.Register(first, first_peer, pool);
  node.broker.Leave(first, true);
  const ClientId observer = node.Join(observer_peer, 1, 1000, kvmwire::OBSERVER);
  kvmwire::ClientMessage query;
  query.mutable_status_query();
  node.Handle(observer, query);
  CHECK(observer_peer.Take(Body::kStatusReply).message.status_reply().orphan_list_size() == 0);
  query.mutable_status_query()->set_orphans(true);
  node.Handle(observer, query);
  const kvmwire::StatusReply status = observer_peer.Take(Body::kStatusReply).message.status_reply();
  REQUIRE(status.orphan_list_size() == 1);
  const kvmwire::OrphanStatus& orphan = status.orphan_list(0);
  CHECK(orphan.region() == "pool");
  CHECK(orphan.owner_uid() == 1000);
  CHECK(orphan.owner_pid() == kDeadPid);
  CHECK(orphan.bytes() == 4 * 64);
  CHECK(orphan.host_memory());
  CHECK_FALSE(orphan.owner_runs());
  CHECK(orphan.left_ms() > 0);
  CHECK(orphan.left_ms() <= 300'000);
}

TEST_CASE("kvmd orphans: granted memory is of the sizes asked for, and too much or none is refused", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  kvmwire::ClientMessage message;
  message.mutable_allocate_memory();
  node.Handle(client, message);
  CheckSays(connection.TakeError(), "0 pieces");
  message.mutable_allocate_memory()->add_size_bytes(std::uint64_t{1} << 50);
  node.Handle(client, message);
  CheckSays(connection.TakeError(), "bytes");
  message.mutable_allocate_memory()->clear_size_bytes();
  for (std::size_t i = 0; i <= kMaxFrameFds; ++i) message.mutable_allocate_memory()->add_size_bytes(4096);
  node.Handle(client, message);
  CheckSays(connection.TakeError(), "pieces asked for");
}

}  // namespace
}  // namespace kvm::test
