// A kvmd in this process: who is told of a region, what happens when it goes.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/shm/registry_view.h"
#include "tests/catch.h"
#include "tests/support/broker/broker_node.h"
#include "tests/support/data/model_specs.h"
#include "tests/support/kvmd/server_runner.h"

namespace kvm::test {
namespace {

using std::chrono::milliseconds;

ino_t Inode(int fd) {
  struct stat info {};
  return ::fstat(fd, &info) == 0 ? info.st_ino : 0;
}

WireClient Worker(const ServerRunner& server, const std::string& name, bool wants_payload = true) {
  WireClient client = server.Join(name, kvmwire::WORKER, wants_payload);
  KVM_REQUIRE_OK(client.DeclareModel(LlamaSpec()));
  return client;
}

RegistryView Registry(const ServerRunner& server) {
  WireClient client = server.Connect();
  Result<Received> hello = client.Hello("view", kvmwire::OBSERVER);
  KVM_REQUIRE_OK(hello);
  Result<MappedMemory> memory = MappedMemory::Attach(hello->fds.at(0).get());
  KVM_REQUIRE_OK(memory);
  Result<RegistryView> view = RegistryView::Open(std::move(*memory));
  KVM_REQUIRE_OK(view);
  return *view;
}

std::size_t Find(const RegistryView& registry, const BlockKey& key) {
  IndexEntry out[layout::kMaxReplicas];
  return registry.index().Find(key, out);
}

kvmwire::ClientMessage Ack(const WireRegion& region) {
  kvmwire::ClientMessage message;
  message.mutable_withdraw_ack()->set_region(region.row);
  message.mutable_withdraw_ack()->set_region_epoch(region.region_epoch);
  return message;
}

TEST_CASE("kvmd regions: announced to clients that declare the model, before or after, and not to the owner", "[unit]") {
  const ServerRunner server;
  WireClient owner = Worker(server, "owner"), early = Worker(server, "early"), frugal = Worker(server, "frugal", false);
  WireClient stranger = server.Join("stranger");
  ModelSpec other_model = LlamaSpec();
  other_model.revision = "another";
  KVM_REQUIRE_OK(stranger.DeclareModel(other_model));
  WireRegion region("pool", LlamaSpec(), 8);
  KVM_REQUIRE_OK(region.Register(owner));

  WireClient late = server.Join("late");
  KVM_REQUIRE_OK(late.DeclareModel(LlamaSpec()));
  REQUIRE(late.announced.size() == 1);  // it came before the reply
  for (WireClient* client : {&early, &late}) {
    Result<Received> received = client->Announcement();
    KVM_REQUIRE_OK(received);
    const kvmwire::RegionAnnounce& announce = received->message.region_announce();
    CHECK(announce.region() == region.row);
    CHECK(announce.region_epoch() == region.region_epoch);
    CHECK(announce.descriptor_().SerializeAsString() == region.descriptor.SerializeAsString());
    CHECK(announce.has_payload());
    REQUIRE(received->fds.size() == 2);
    CHECK(Inode(received->fds[0].get()) == Inode(region.generation_memory.fd()));
    CHECK(Inode(received->fds[1].get()) == Inode(region.payload.fd()));
  }
  Result<Received> received = frugal.Announcement();
  KVM_REQUIRE_OK(received);
  CHECK_FALSE(received->message.region_announce().has_payload());
  CHECK(received->fds.size() == 1);
  KVM_CHECK_ERROR(owner.Announcement(milliseconds(50)), Errc::kDeadlineExceeded, "");
  KVM_CHECK_ERROR(stranger.Announcement(milliseconds(50)), Errc::kDeadlineExceeded, "");
  // Declaring once more has nothing sent again, unless it is asked for.
  KVM_REQUIRE_OK(late.DeclareModel(LlamaSpec()));
  KVM_CHECK_ERROR(late.Announcement(milliseconds(50)), Errc::kDeadlineExceeded, "");
  kvmwire::ClientMessage again;
  again.mutable_declare_model()->set_spec(LlamaSpec().Canonical());
  again.mutable_declare_model()->set_announce_again(true);
  KVM_REQUIRE_OK(late.Call(again));
  const Result<Received> repeated = late.Announcement();
  KVM_REQUIRE_OK(repeated);
  CHECK(repeated->message.region_announce().region_epoch() == region.region_epoch);
  CHECK(repeated->fds.size() == 2);
}

TEST_CASE("kvmd regions: a published block is in shared memory when the answer comes", "[unit]") {
  const ServerRunner server;
  const RegistryView registry = Registry(server);
  WireClient owner = Worker(server, "owner");
  WireRegion region("pool", LlamaSpec(), 100);
  KVM_REQUIRE_OK(region.Register(owner));
  std::vector<PublishRecord> records;
  for (std::uint32_t block = 0; block < 100; ++block) records.push_back(region.Write(block, {block, block * 0x9e3779b97f4a7c15ULL}));
  Result<kvmwire::PublishAck> ack = region.Publish(owner, records);
  KVM_REQUIRE_OK(ack);
  CHECK(ack->inserted() == 100);
  CHECK(ack->sequence() == 1);
  for (const PublishRecord& record : records) REQUIRE(Find(registry, record.key) == 1);
  CHECK(registry.header().live_entries.load() == 100);
  layout::RegionInfo info;
  REQUIRE(registry.ReadRegion(region.row, info));
  CHECK(std::string(info.name) == "pool");
  CHECK(info.owner_pid == static_cast<std::uint32_t>(::getpid()));
  CHECK(Eventually([&] { return registry.ReadRegion(region.row, info) && info.live_entries == 100; }));
  CHECK(Eventually([&, first = registry.header().heartbeat_ns.load()] { return registry.header().heartbeat_ns.load() > first; }));
}

TEST_CASE("kvmd regions: unregistering is answered when every importer has acknowledged", "[unit]") {
  const ServerRunner server;
  const RegistryView registry = Registry(server);
  WireClient owner = Worker(server, "owner"), first = Worker(server, "first"), second = Worker(server, "second");
  WireRegion region("pool", LlamaSpec(), 8);
  KVM_REQUIRE_OK(region.Register(owner));
  KVM_REQUIRE_OK(region.Publish(owner, {region.Write(0, {1, 1})}));
  for (WireClient* importer : {&first, &second}) CHECK(importer->Announcement()->message.has_region_announce());
  kvmwire::ClientMessage unregister = region.UnregisterMessage(10'000);
  unregister.set_request_id(999);
  KVM_REQUIRE_OK(owner.Send(unregister));
  for (WireClient* importer : {&first, &second}) {
    Result<Received> withdraw = importer->Announcement();
    KVM_REQUIRE_OK(withdraw);
    CHECK(withdraw->message.region_withdraw().region() == region.row);
    CHECK(withdraw->message.region_withdraw().wants_ack());
    CHECK_FALSE(withdraw->message.region_withdraw().owner_died());
  }
  // Its entries leave the index at once, though an importer still has it mapped.
  CHECK(Eventually([&] { return Find(registry, {1, 1}) == 0; }));
  KVM_REQUIRE_OK(first.Send(Ack(region)));
  KVM_REQUIRE_OK(first.Send(Ack(region)));  // twice counts once
  KVM_CHECK_ERROR(owner.Receive(milliseconds(100)), Errc::kDeadlineExceeded, "");
  SECTION("the last one acknowledges") { KVM_REQUIRE_OK(second.Send(Ack(region))); }
  SECTION("the last one dies") { second.Close(); }
  Result<Received> reply = owner.Receive();
  KVM_REQUIRE_OK(reply);
  CHECK(reply->message.request_id() == 999);
  CHECK(reply->message.has_empty());
  layout::RegionInfo info;
  CHECK_FALSE(registry.ReadRegion(region.row, info));
  KVM_REQUIRE_OK(region.Register(owner));  // the name is free
}

TEST_CASE("kvmd regions: an importer that does not acknowledge costs the deadline, not the region's end", "[unit]") {
  daemon::Config config;
  config.withdraw_timeout_ms = 100;
  const ServerRunner server(config);
  const RegistryView registry = Registry(server);
  WireClient owner = Worker(server, "owner"), importer = Worker(server, "importer");
  WireRegion region("pool", LlamaSpec(), 8);
  KVM_REQUIRE_OK(region.Register(owner));
  KVM_CHECK_ERROR(owner.Call(region.UnregisterMessage()), Errc::kDeadlineExceeded, "importer");
  layout::RegionInfo info;
  CHECK(Eventually([&] { return !registry.ReadRegion(region.row, info); }));
  KVM_REQUIRE_OK(importer.Send(Ack(region)));  // a late acknowledgement is ignored
  KVM_CHECK_ERROR(owner.Call(region.UnregisterMessage()), Errc::kNotFound, "no such region");
  KVM_REQUIRE_OK(importer.QueryStatus());
}

// Where RegionAnnouncer::AckDeadline takes what it is asked for, the row waits for 49 days: seen.
TEST_CASE("kvmd regions: however long an owner would wait for its importers, kvmd waits for ten minutes at most", "[unit]") {
  Node node;
  FakeConnection owner_connection, importer_connection;
  const ClientId owner = node.Join(owner_connection);
  node.Join(importer_connection);  // it does not acknowledge
  WireRegion region("pool", LlamaSpec(), 8);
  node.Register(owner, owner_connection, region);
  kvmwire::ClientMessage unregister = region.UnregisterMessage(~std::uint32_t{0});
  unregister.set_request_id(1);
  node.Handle(owner, unregister);
  const SteadyTime now = std::chrono::steady_clock::now();
  for (const int minutes : {9, 11}) {
    node.WorkAll();
    CHECK(owner_connection.TakeError() == "no error");
    node.broker.Tick(now + std::chrono::minutes(minutes));
  }
  CheckSays(owner_connection.TakeError(), "an importer has not unmapped the region in time");
}

TEST_CASE("kvmd regions: unregistering without a request id waits for no importer and is not answered", "[unit]") {
  const ServerRunner server;
  const RegistryView registry = Registry(server);
  WireClient owner = Worker(server, "owner"), importer = Worker(server, "importer");
  WireRegion region("pool", LlamaSpec(), 8);
  KVM_REQUIRE_OK(region.Register(owner));
  KVM_REQUIRE_OK(region.Publish(owner, {region.Write(0, {1, 1})}));
  CHECK(importer.Announcement()->message.has_region_announce());
  KVM_REQUIRE_OK(owner.Send(region.UnregisterMessage(10'000)));
  Result<Received> withdraw = importer.Announcement();
  KVM_REQUIRE_OK(withdraw);
  CHECK(withdraw->message.region_withdraw().region() == region.row);
  CHECK_FALSE(withdraw->message.region_withdraw().wants_ack());
  layout::RegionInfo info;
  CHECK(Eventually([&] { return Find(registry, {1, 1}) == 0 && !registry.ReadRegion(region.row, info); }));
  // Of a region that is gone: nothing to say
  KVM_REQUIRE_OK(owner.Send(region.UnregisterMessage()));
  KVM_CHECK_ERROR(owner.Receive(milliseconds(100)), Errc::kDeadlineExceeded, "");
  KVM_REQUIRE_OK(region.Register(owner));
}

TEST_CASE("kvmd regions: only the owner unregisters, with the right epoch", "[unit]") {
  const ServerRunner server;
  WireClient owner = Worker(server, "owner"), other = Worker(server, "other");
  WireRegion region("pool", LlamaSpec(), 8);
  KVM_REQUIRE_OK(region.Register(owner));
  KVM_CHECK_ERROR(other.Call(region.UnregisterMessage()), Errc::kNotFound, "no such region");
  KVM_CHECK_ERROR(region.Register(other), Errc::kAlreadyExists, "pool");
  WireRegion wrong("wrong", LlamaSpec(), 8);
  wrong.row = region.row;
  wrong.region_epoch = region.region_epoch + 1;
  KVM_CHECK_ERROR(owner.Call(wrong.UnregisterMessage()), Errc::kNotFound, "no such region");
  wrong.row = 0xFFFFFFFF;
  KVM_CHECK_ERROR(owner.Call(wrong.UnregisterMessage()), Errc::kNotFound, "no such region");
}

TEST_CASE("kvmd regions: regions and entries of an owner that has gone are removed, and importers are told", "[unit]") {
  const ServerRunner server;
  const RegistryView registry = Registry(server);
  WireClient owner = Worker(server, "owner"), importer = Worker(server, "importer");
  WireRegion region("pool", LlamaSpec(), 20'000);
  KVM_REQUIRE_OK(region.Register(owner));
  CHECK(importer.Announcement()->message.has_region_announce());
  for (std::uint32_t from = 0; from < 10'000; from += 5000) {
    std::vector<PublishRecord> records;
    for (std::uint32_t block = from; block < from + 5000; ++block)
      records.push_back(region.Write(block, {block, block * 0x9e3779b97f4a7c15ULL}));
    CHECK(region.Publish(owner, records)->inserted() == 5000);
  }
  owner.Close();
  Result<Received> withdraw = importer.Announcement();
  KVM_REQUIRE_OK(withdraw);
  CHECK(withdraw->message.region_withdraw().owner_died());
  CHECK_FALSE(withdraw->message.region_withdraw().wants_ack());
  CHECK(Eventually([&] { return registry.header().live_entries.load() == 0 && registry.header().live_regions.load() == 0; }));
  // Most are reaped; the sweeper may come upon some of them first.
  const layout::Counters& counters = registry.header().counters;
  CHECK(Eventually([&] { return counters.reaped.load() + counters.swept.load() == 10'000; }));
  layout::RegionInfo info;
  CHECK_FALSE(registry.ReadRegion(region.row, info));
}

TEST_CASE("kvmd regions: a client that reconnects gets its name back at once", "[unit]") {
  const ServerRunner server;
  WireRegion region("pool", LlamaSpec(), 8);
  auto owner = std::make_unique<WireClient>(Worker(server, "owner"));
  for (int round = 0; round < 100; ++round) {
    KVM_REQUIRE_OK(region.Register(*owner));
    // The new connection's first messages are there before the old one's end.
    auto next = std::make_unique<WireClient>(Worker(server, "owner again"));
    owner->Close();
    owner = std::move(next);
  }
}

TEST_CASE("kvmd regions: memory that its owner could still change the size of is refused", "[unit]") {
  const ServerRunner server;
  WireClient owner = Worker(server, "owner");
  WireRegion region("pool", LlamaSpec(), 8);
  const UniqueFd unsealed(::memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(unsealed.get(), 4096) == 0);
  const UniqueFd file(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  for (const int bad : {unsealed.get(), file.get()}) {
    KVM_CHECK_ERROR(owner.Call(region.RegisterMessage(), {bad, region.payload.fd()}), Errc::kPermissionDenied, "generation table");
    KVM_CHECK_ERROR(owner.Call(region.RegisterMessage(), {region.generation_memory.fd(), bad}), Errc::kPermissionDenied, "segment 0");
  }
  KVM_CHECK_ERROR(owner.Call(region.RegisterMessage(), {}), Errc::kInvalidArgument, "descriptor");
  KVM_CHECK_ERROR(owner.Call(region.RegisterMessage(), {region.generation_memory.fd()}), Errc::kInvalidArgument, "descriptors");
  KVM_CHECK_ERROR(owner.Call(region.RegisterMessage(), {region.payload.fd(), region.payload.fd()}), Errc::kProtocol, "generation table");
  KVM_REQUIRE_OK(region.Register(owner));
}

TEST_CASE("kvmd regions: a declared model must be one", "[unit]") {
  const ServerRunner server;
  WireClient client = server.Join();
  kvmwire::ClientMessage message;
  message.mutable_declare_model()->set_spec("kvm.model.1\nmodel_id=4:abc\n");
  KVM_CHECK_ERROR(client.Call(message), Errc::kInvalidArgument, "model_id");
  ModelSpec spec = LlamaSpec();
  spec.block_tokens = 0;
  KVM_CHECK_ERROR(client.DeclareModel(spec), Errc::kInvalidArgument, "block_tokens");
  WireRegion region("pool", LlamaSpec(), 8);
  KVM_CHECK_ERROR(region.Register(client), Errc::kNotFound, "declared");
}

}  // namespace
}  // namespace kvm::test
