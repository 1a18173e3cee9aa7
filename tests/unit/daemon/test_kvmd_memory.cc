// Whose memory a region is made of: what kvmd takes for a grant, which memory one region has alone,
// and what becomes of a region whose memory is not whole any more.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "daemon/broker/services/grants.h"
#include "daemon/system/process_info.h"
#include "tests/catch.h"
#include "tests/support/broker/broker_node.h"
#include "tests/support/broker/offloading_worker.h"
#include "tests/support/process/fork.h"
#include "tests/support/process/lost_memory.h"

namespace kvm::test {
namespace {

using daemon::DomainMode;

constexpr std::uint32_t kBlocks = 2048;  // so that a generation table has several pages

// A generation table in whatever memory it is.
void Format(int fd, std::uint32_t blocks) {
  const std::size_t bytes = GenerationTableBytes(blocks);
  void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  REQUIRE(at != MAP_FAILED);
  GenerationWriter::Format({static_cast<std::byte*>(at), bytes}, blocks);
  ::munmap(at, bytes);
}

void PunchHole(int fd, std::size_t bytes) {
  REQUIRE(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) == 0);
}

kvmwire::PublishAck PublishOne(Node& node, ClientId client, FakeConnection& connection, WireRegion& region, std::uint32_t block) {
  node.Handle(client, region.PublishMessage({region.Write(block, {block, 1})}));
  return connection.Take(Body::kPublishAck).message.publish_ack();
}

std::string Refusal(Node& node, ClientId client, FakeConnection& connection, const WireRegion& region, const std::vector<int>& fds) {
  node.Handle(client, region.RegisterMessage(), fds);
  return connection.TakeError();
}

TEST_CASE("kvmd memory: a slab of the host cache can't be registered as generation table or segment of a region", "[unit]") {
  Node node(CacheOf(2));
  OffloadingWorker writer(node, "writer");
  writer.PrepareStore(writer.Write(0, 4));
  const Received grant = writer.connection.Take(Body::kSlabGrant);
  const int slab = grant.fds.at(0).get();
  WireRegion region("evil", LlamaSpec(), kSlots, kBlockBytes);
  CheckSays(Refusal(node, writer.id, writer.connection, region, {region.generation_memory.fd(), slab}), "segment 0: kvmd did not grant");
  Format(slab, kSlots);
  CheckSays(Refusal(node, writer.id, writer.connection, region, {slab, region.payload.fd()}), "generation table: kvmd did not grant");
  node.Register(writer.id, writer.connection, region);
}

TEST_CASE("kvmd memory: granted memory can only be registered for its purpose, the first piece as generation table", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  const std::uint32_t blocks = 8;
  WireRegion region = node.Granted(client, connection, "pool", blocks, 4096);
  WireRegion sealed("sealed", LlamaSpec(), blocks, 4096);
  Format(region.payload.fd(), blocks);
  CheckSays(Refusal(node, client, connection, sealed, {region.payload.fd(), sealed.payload.fd()}), "generation table: kvmd did not grant");
  WireRegion small("small", LlamaSpec(), 1, 16);
  CheckSays(Refusal(node, client, connection, small, {small.generation_memory.fd(), region.generation_memory.fd()}),
            "segment 0: kvmd did not grant");
  node.Register(client, connection, region);
}

TEST_CASE("kvmd memory: memory that was granted to one user can't be registered by another", "[unit]") {
  Node node(With(&Config::domain_mode, DomainMode::kNode));
  FakeConnection owner_peer, other_peer, again_peer;
  const ClientId owner = node.Join(owner_peer, kDeadPid, 1000), other = node.Join(other_peer, 1, 2000);
  const WireRegion region = node.Granted(owner, owner_peer, "pool", 8);
  CheckSays(Refusal(node, other, other_peer, region, region.fds()), "did not grant this memory to user 2000");
  const WireRegion sealed("sealed", LlamaSpec(), 8);
  CheckSays(Refusal(node, other, other_peer, sealed, {sealed.generation_memory.fd(), region.payload.fd()}), "segment 0: kvmd did not");
  // A prefix of the user's number is another user.
  const ClientId nearly = node.Join(again_peer, 2, 100);
  CheckSays(Refusal(node, nearly, again_peer, region, region.fds()), "did not grant this memory to user 100");
}

TEST_CASE("kvmd memory: sealed memory of a third user is refused", "[unit]") {
  if (::geteuid() != 0) KVM_SKIP("only root can give memory to another user");
  Node node(With(&Config::domain_mode, DomainMode::kNode));
  FakeConnection owner_peer, other_peer;
  const ClientId owner = node.Join(owner_peer, kDeadPid, 1000), other = node.Join(other_peer, 1, 2000);
  WireRegion region("pool", LlamaSpec(), 8);
  for (const int fd : region.fds()) REQUIRE(::fchown(fd, 1000, 1000) == 0);
  CheckSays(Refusal(node, other, other_peer, region, region.fds()), "it was made by user 1000, this client is of user 2000");
  node.Register(owner, owner_peer, region);
}

TEST_CASE("kvmd memory: memory that one kvmd has granted can be registered with the next one", "[unit]") {
  FakeConnection before_peer, connection;
  Node before;
  WireRegion region = before.Granted(before.Join(before_peer), before_peer, "pool", 8);
  Node node;
  const ClientId client = node.Join(connection);
  node.Register(client, connection, region);
  node.Publish(client, connection, region);
}

TEST_CASE("kvmd memory: a generation table on huge pages is refused", "[unit]") {
  HugeMemory huge(1);
  if (!huge) KVM_SKIP("no huge pages can be reserved here");
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  Format(huge.fd(), 8);
  REQUIRE(::fcntl(huge.fd(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
  WireRegion region("pool", LlamaSpec(), 8, 4096);
  CheckSays(Refusal(node, client, connection, region, {huge.fd(), region.payload.fd()}), "generation table: not on ordinary pages");
}

TEST_CASE("kvmd memory: one region's table or segment is no other region's, for as long as it serves", "[unit]") {
  Node node(With(&Config::domain_mode, DomainMode::kNode));
  FakeConnection owner_peer, other_peer;
  const ClientId owner = node.Join(owner_peer, kDeadPid), other = node.Join(other_peer, 1);
  WireRegion region("pool", LlamaSpec(), 8), evil("evil", LlamaSpec(), 8);
  node.Register(owner, owner_peer, region);
  CheckSays(Refusal(node, other, other_peer, evil, {region.generation_memory.fd(), evil.payload.fd()}),
            "generation table: region pool has this memory");
  CheckSays(Refusal(node, other, other_peer, evil, {evil.generation_memory.fd(), region.payload.fd()}),
            "segment 0: region pool has this memory");
  CHECK(node.Domain().regions() == 1);
  node.Publish(owner, owner_peer, region);
  node.Handle(owner, region.UnregisterMessage(1));
  node.WorkAll();
  evil.descriptor.set_name("pool");
  node.Handle(other, evil.RegisterMessage(), {region.generation_memory.fd(), evil.payload.fd()});
  other_peer.Take(Body::kRegisterRegionReply);
}

TEST_CASE("kvmd memory: an orphan's memory can't be registered by others, and its owner can return to it", "[unit]") {
  Node node;
  FakeConnection owner_peer, other_peer, back_peer;
  const Sleeper process;
  const ClientId owner = node.Join(owner_peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd());
  WireRegion region = node.Granted(owner, owner_peer, "pool", 8);
  node.Register(owner, owner_peer, region);
  node.broker.Leave(owner, false);
  const ClientId other = node.Join(other_peer, 1);
  WireRegion evil("evil", LlamaSpec(), 8);
  CheckSays(Refusal(node, other, other_peer, evil, {region.generation_memory.fd(), evil.payload.fd()}), "region pool has this memory");
  const std::uint32_t row = region.row, epoch = region.region_epoch;
  const ClientId back = node.Join(back_peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd());
  node.Register(back, back_peer, region);
  CHECK(region.row == row);
  CHECK(region.region_epoch == epoch);
}

TEST_CASE("kvmd memory: a region has each of its memories once", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  WireRegion region("pool", LlamaSpec(), 8, 16);
  CheckSays(Refusal(node, client, connection, region, {region.generation_memory.fd(), region.generation_memory.fd()}),
            "the same memory came twice");
}

TEST_CASE("kvmd memory: a region with a hole in its generation table is dropped before the next publish reads it", "[unit]") {
  Node node;
  FakeConnection connection, importer_peer;
  const ClientId client = node.Join(connection);
  node.Join(importer_peer, 1);
  WireRegion region = node.Granted(client, connection, "pool", kBlocks);
  node.Register(client, connection, region);
  CHECK(PublishOne(node, client, connection, region, kBlocks - 1).inserted() == 1);
  importer_peer.Take(Body::kRegionAnnounce);
  PunchHole(region.generation_memory.fd(), 4096);
  CHECK(PublishOne(node, client, connection, region, kBlocks - 2).refused_invalid() == 1);
  CHECK(importer_peer.Take(Body::kRegionWithdraw).message.region_withdraw().region() == region.row);
  node.WorkAll();
  CHECK(node.Domain().regions() == 0);
  CHECK(node.Domain().entries() == 0);
  // Nor is it registered again as it is, and a new one is.
  CHECK(Refusal(node, client, connection, region, region.fds()) != "no error");
  WireRegion next = node.Granted(client, connection, "pool", kBlocks);
  node.Register(client, connection, next);
}

TEST_CASE("kvmd memory: a hole in a segment or in an idle region's table is noticed without a request", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  WireRegion good = node.Granted(client, connection, "good", 8, 4096), payload = node.Granted(client, connection, "payload", 8, 4096),
             table = node.Granted(client, connection, "table", kBlocks, 4096);
  for (WireRegion* region : {&good, &payload, &table}) node.Register(client, connection, *region);
  node.Publish(client, connection, good);
  PunchHole(payload.payload.fd(), 4096);
  PunchHole(table.generation_memory.fd(), 4096);
  node.broker.Tick(std::chrono::steady_clock::now());
  node.WorkAll();
  REQUIRE(node.Domain().regions() == 1);
  CHECK(node.Domain().entries() == 8);
}

TEST_CASE("kvmd memory: a generation table that is gone drops its region and not kvmd", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  WireRegion good("good", LlamaSpec(), 8);
  node.Register(client, connection, good);
  WireRegion region = node.Granted(client, connection, "pool", 8);
  node.Register(client, connection, region);
  node.Publish(client, connection, region);
  node.Publish(client, connection, good, 2);
  REQUIRE(LoseMappings("kvm-granted:generations:1000:") == 1);
  SECTION("at a publish") { CHECK(PublishOne(node, client, connection, region, 3).inserted() == 0); }
  SECTION("at a sweep") {
    for (int i = 0; i < 100; ++i) node.broker.Sweep();
  }
  node.broker.Tick(std::chrono::steady_clock::now());
  node.WorkAll();
  REQUIRE(node.Domain().regions() == 1);
  CHECK(node.Domain().entries() == 8);
}

TEST_CASE("kvmd memory: a dead worker's region with a hole is not given to the next one", "[unit]") {
  Node node;
  FakeConnection owner_peer, adopter_peer;
  const ClientId owner = node.Join(owner_peer);
  WireRegion region = node.Granted(owner, owner_peer, "pool", kBlocks);
  node.Register(owner, owner_peer, region);
  CHECK(PublishOne(node, owner, owner_peer, region, 0).inserted() == 1);
  node.broker.Leave(owner, /*died=*/true);
  PunchHole(region.generation_memory.fd(), 4096);
  const ClientId adopter = node.Join(adopter_peer, kDeadPid + 1);
  node.Handle(adopter, Node::Adopt(region));
  CheckSays(adopter_peer.TakeError(), "hole in its memory");
  node.WorkAll();
  CHECK(node.Domain().regions() == 0);
}

TEST_CASE("kvmd memory: a slab in which its writer has punched a hole is dropped", "[unit]") {
  Node node(CacheOf(2));
  OffloadingWorker writer(node, "writer");
  REQUIRE(writer.PrepareStore(writer.Write(0, 4)) == 4);
  const Received grant = writer.connection.Take(Body::kSlabGrant);
  const Received announced = writer.Announced();
  PunchHole(grant.fds.at(0).get(), kBlockBytes);
  node.broker.Tick(std::chrono::steady_clock::now());
  node.WorkAll();
  const Received withdrawn = writer.connection.Take(Body::kRegionWithdraw);
  CHECK(withdrawn.message.region_withdraw().region() == announced.message.region_announce().region());
  REQUIRE(writer.PrepareStore(writer.Write(8, 12)) == 4);  // in another one
}

TEST_CASE("kvmd memory: a slab whose generation table is gone is dropped", "[unit]") {
  Node node(CacheOf(2));
  OffloadingWorker writer(node, "writer");
  REQUIRE(writer.PrepareStore(writer.Write(0, 4)) == 4);
  const Received announced = writer.Announced();
  REQUIRE(LoseMappings("host-cache-0:generations") == 1);
  for (int i = 0; i < 100; ++i) node.broker.Sweep();
  node.broker.Tick(std::chrono::steady_clock::now());
  node.WorkAll();
  const Received withdrawn = writer.connection.Take(Body::kRegionWithdraw);
  CHECK(withdrawn.message.region_withdraw().region() == announced.message.region_announce().region());
}

TEST_CASE("kvmd memory: a slab whose generation table is lost while kvmd writes it is dropped", "[unit]") {
  Node node(CacheOf(2));
  OffloadingWorker writer(node, "writer");
  REQUIRE(writer.PrepareStore(writer.Write(0, 4)) == 4);
  const Received announced = writer.Announced();
  REQUIRE(LoseMappings("host-cache-0:generations", /*written=*/true) == 1);
  writer.Send(writer.Write(4, 6));
  node.broker.Tick(std::chrono::steady_clock::now());
  node.WorkAll();
  const Received withdrawn = writer.connection.Take(Body::kRegionWithdraw);
  CHECK(withdrawn.message.region_withdraw().region() == announced.message.region_announce().region());
}

TEST_CASE("kvmd memory: a region whose loss kvmd has seen is found at once, among any number of regions", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  std::vector<WireRegion> sound;
  for (int i = 0; i < 40; ++i) {
    sound.emplace_back("sound" + std::to_string(i), LlamaSpec(), 8);
    node.Register(client, connection, sound.back());
  }
  WireRegion region = node.Granted(client, connection, "pool", 8);
  node.Register(client, connection, region);
  REQUIRE(LoseMappings("kvm-granted:generations:1000:") == 1);
  CHECK(PublishOne(node, client, connection, region, 3).inserted() == 0);
  node.broker.Tick(std::chrono::steady_clock::now());
  node.WorkAll();
  CHECK(node.Domain().regions() == sound.size());
}

TEST_CASE("kvmd memory: an owner that returns to a region with a hole, or with other memory, does not get it back", "[unit]") {
  Node node;
  FakeConnection owner_peer, back_peer;
  const Sleeper process;
  const ClientId owner = node.Join(owner_peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd());
  WireRegion region = node.Granted(owner, owner_peer, "pool", kBlocks);
  node.Register(owner, owner_peer, region);
  CHECK(PublishOne(node, owner, owner_peer, region, 0).inserted() == 1);
  node.broker.Leave(owner, /*died=*/false);
  const ClientId back = node.Join(back_peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd());
  SECTION("a hole") {
    PunchHole(region.generation_memory.fd(), 4096);
    CHECK(Refusal(node, back, back_peer, region, region.fds()) != "no error");
    node.WorkAll();
    CHECK(node.Domain().regions() == 0);
  }
  SECTION("other memory") {
    WireRegion other = node.Granted(back, back_peer, "pool", kBlocks);
    node.Register(back, back_peer, other);
    CHECK(other.region_epoch != region.region_epoch);
    node.WorkAll();
    CHECK(node.Domain().regions() == 1);
  }
  CHECK(node.Domain().entries() == 0);
}

TEST_CASE("kvmd memory: a process that has ended is never taken for another one with its PID", "[unit]") {
  // A listener in this process, a child that connects and ends.
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr address{};
  address.sa_family = AF_UNIX;
  // A name that the kernel chooses
  REQUIRE(::bind(listener.get(), &address, sizeof(address.sa_family)) == 0);
  REQUIRE(::listen(listener.get(), 1) == 0);
  sockaddr_storage name{};
  socklen_t bytes = sizeof(name);
  REQUIRE(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&name), &bytes) == 0);
  const ChildEnd end = RunInChild([&] {
    const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return ::connect(socket.get(), reinterpret_cast<sockaddr*>(&name), bytes);
  });
  REQUIRE(end.exit_code == 0);
  const UniqueFd connection(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  REQUIRE(connection);
  // As if its number were another process's by now: this one's.
  const auto number = static_cast<std::uint32_t>(::getpid());
  CHECK_FALSE(daemon::PidFdByNumber(connection.get(), number));
  daemon::WatchedProcess process(daemon::PeerPidFd(connection.get(), number), false);
  CHECK((!process.known() || process.Ended()));
}

TEST_CASE("kvmd memory: outside of user namespaces, and in one that maps all, every user has a number", "[unit]") {
  CHECK(daemon::MapsEveryId("         0          0 4294967295\n"));
  CHECK(daemon::MapsEveryId("0 0 1000\n1000 0 4294966295\n"));
  CHECK_FALSE(daemon::MapsEveryId("         0       1000          1\n"));
  CHECK_FALSE(daemon::MapsEveryId("0 100000 65536\n"));
  CHECK_FALSE(daemon::MapsEveryId(""));
  CHECK_FALSE(daemon::MapsEveryId("0 0 many\n"));
}

TEST_CASE("kvmd memory: a process that runs is identified by its PID if the kernel has no better way", "[unit]") {
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const UniqueFd one(ends[0]), other(ends[1]);
  daemon::WatchedProcess process(daemon::PidFdByNumber(one.get(), static_cast<std::uint32_t>(::getpid())), false);
  CHECK(process.known());
  CHECK_FALSE(process.Ended());
}

}  // namespace
}  // namespace kvm::test
