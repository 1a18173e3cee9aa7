// Quotas by user over all of its connections: each refusal names the user and the option, an honest
// bystander of another user in the same domain is served, and memory counts until no process can
// write it any more.
#include <memory>
#include <string>
#include <vector>

#include "tests/support/broker/broker_node.h"
#include "tests/support/broker/offloading_worker.h"

namespace kvm::test {
namespace {

constexpr std::uint32_t kAttacker = 2001, kBystander = 2002;

Config Shared() { return With(&Config::domain_mode, daemon::DomainMode::kNode); }

kvmwire::ClientMessage DeclareMessage(int number) {
  ModelSpec spec = LlamaSpec();
  spec.model_id = "squatter-" + std::to_string(number);
  kvmwire::ClientMessage message;
  message.mutable_declare_model()->set_spec(spec.Canonical());
  return message;
}

kvmwire::ClientMessage AllocateMessage(std::uint64_t bytes) {
  kvmwire::ClientMessage message;
  message.mutable_allocate_memory()->add_size_bytes(bytes);
  return message;
}

struct Worker {
  Worker(Node& its_node, std::uint32_t uid) : node(its_node), id(its_node.Join(connection, kDeadPid, uid)) {}

  std::string Refused(const kvmwire::ClientMessage& message, const std::vector<int>& fds = {}) {
    node.Handle(id, message, fds);
    return connection.TakeError();
  }
  UniqueFd Allocate(std::uint64_t bytes) {
    node.Handle(id, AllocateMessage(bytes));
    return std::move(connection.Take(Body::kEmpty).fds.at(0));
  }

  Node& node;
  FakeConnection connection;
  ClientId id;
};

}  // namespace

TEST_CASE("Quotas: one user's models leave rows of the table to others, over all connections", "[unit]") {
  Config config = Shared();
  config.max_models = 8;  // six of which are one user's
  Node node(config);
  Worker first(node, kAttacker), second(node, kAttacker);  // LlamaSpec is one
  for (int i = 0; i < 5; ++i) node.Handle(i % 2 == 0 ? first.id : second.id, DeclareMessage(i));
  const std::string refused = second.Refused(DeclareMessage(5));
  CheckSays(refused, "user 2001");
  CheckSays(refused, "6 (--max-models-per-user)");
  Worker bystander(node, kBystander);
  node.Handle(bystander.id, DeclareMessage(100));
  bystander.connection.Take(Body::kDeclareModelReply);
  // A model counts once, and as long as a connection has declared it.
  node.Handle(second.id, DeclareMessage(0));
  node.broker.Leave(first.id, true);
  node.Handle(second.id, DeclareMessage(6));
  CHECK_FALSE(std::any_of(second.connection.sent.begin(), second.connection.sent.end(),
                          [](const Received& one) { return one.message.has_error(); }));
}

TEST_CASE("Quotas: blocks and descriptors of a user count over all connections", "[unit]") {
  Config config = Shared();
  config.max_blocks_per_user = 24;
  SECTION("blocks") {}
  SECTION("descriptors") {
    config.max_blocks_per_user = 0;
    config.max_fds_per_user = 7;  // a region of two files has two
  }
  Node node(config);
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < 4; ++i) workers.push_back(std::make_unique<Worker>(node, kAttacker));
  for (int i = 0; i < 3; ++i) {
    WireRegion region("pool-" + std::to_string(i), LlamaSpec(), 8);
    node.Register(workers[static_cast<std::size_t>(i)]->id, workers[static_cast<std::size_t>(i)]->connection, region);
  }
  WireRegion region("one-more", LlamaSpec(), 8);
  const std::string refused = workers[3]->Refused(region.RegisterMessage(), region.fds());
  CheckSays(refused, "user 2001");
  CheckSays(refused, config.max_fds_per_user != 0 ? "7 (--max-fds-per-user)" : "24 (--max-blocks-per-user)");
  Worker bystander(node, kBystander);
  WireRegion honest("honest", LlamaSpec(), 8);
  node.Register(bystander.id, bystander.connection, honest);
  node.broker.Leave(workers[0]->id, true);
  node.WorkAll();
  node.Register(workers[3]->id, workers[3]->connection, region);
}

TEST_CASE("Quotas: a user at its limit of entries makes room with its own", "[unit]") {
  Config config = Shared();
  config.max_entries_per_user = 100;
  Node node(config);
  Worker first(node, kAttacker), second(node, kAttacker), bystander(node, kBystander);
  WireRegion honest("honest", LlamaSpec(), 64), one("one", LlamaSpec(), 64), two("two", LlamaSpec(), 64);
  node.Register(bystander.id, bystander.connection, honest);
  node.Publish(bystander.id, bystander.connection, honest, 1);
  node.Register(first.id, first.connection, one);
  node.Register(second.id, second.connection, two);
  node.Publish(first.id, first.connection, one, 2);
  node.Publish(second.id, second.connection, two, 3);
  CHECK(node.Domain().entries() == 164);
}

// Where MakeRoomOfUser looks at all of its blocks, one record costs six slices: seen.
TEST_CASE("Quotas: the search for room among a user's own entries ends, however large its regions are", "[unit]") {
  constexpr std::uint32_t kBlocks = 100'000;
  Config config = Shared();
  config.max_entries_per_user = 4;
  config.max_blocks_per_client = config.max_blocks_per_user = 2 * kBlocks;
  Node node(config);
  Worker worker(node, kAttacker);
  WireRegion sparse("sparse", LlamaSpec(), kBlocks, 1);
  node.Register(worker.id, worker.connection, sparse);
  std::vector<PublishRecord> records;
  for (std::uint32_t block = 0; block < 4; ++block) records.push_back(sparse.Write(block, {block, block}));
  node.Handle(worker.id, sparse.PublishMessage(records));
  REQUIRE(worker.connection.Take(Body::kPublishAck).message.publish_ack().inserted() == 4);
  const daemon::WorkUnits before = daemon::WorkMeter::spent();
  for (std::uint32_t block = 4; block < 8; ++block) node.Handle(worker.id, sparse.PublishMessage({sparse.Write(block, {block, block})}));
  CHECK(daemon::WorkMeter::spent() - before < 2 * daemon::kSliceUnits);
}

TEST_CASE("Quotas: granted memory counts until no process can write it, whatever has become of its region", "[unit]") {
  Config config = Shared();
  config.max_granted_memory_per_user = 1 << 20;
  config.orphan_ttl_s = 0;
  Node node(config);
  SteadyTime now = std::chrono::steady_clock::now();
  const auto tick = [&] {
    node.WorkAll();
    node.broker.Tick(now += seconds(1));
  };
  UniqueFd kept;
  {
    Worker worker(node, kAttacker);
    kept = worker.Allocate(1 << 19);
    WireRegion pool = node.Granted(worker.id, worker.connection, "pool", 8, 1 << 15);
    node.Register(worker.id, worker.connection, pool);
    node.broker.Leave(worker.id, true);
    tick();
    // The region has gone, and its maker still has it.
    Worker next(node, kAttacker);
    const std::string refused = next.Refused(AllocateMessage(1 << 19));
    CheckSays(refused, "user 2001");
    CheckSays(refused, "1048576 (--max-granted-memory-per-user)");
    Worker bystander(node, kBystander);
    bystander.Allocate(1 << 20);
    node.broker.Leave(next.id, true);
  }
  tick();
  Worker worker(node, kAttacker);
  // What was not registered counts as well: the descriptor is still open.
  CheckSays(worker.Refused(AllocateMessage((1 << 19) + 1)), "--max-granted-memory-per-user");
  kept.Reset();
  tick();
  worker.Allocate(1 << 20);
}

TEST_CASE("Quotas: memory that waits for its client holds a descriptor of its user's", "[unit]") {
  Config config = Shared();
  config.max_fds_per_user = 4;
  Node node(config);
  Worker first(node, kAttacker), second(node, kAttacker), bystander(node, kBystander);
  std::vector<UniqueFd> memory;
  for (int i = 0; i < 4; ++i) memory.push_back((i % 2 == 0 ? first : second).Allocate(4096));
  CheckSays(first.Refused(AllocateMessage(4096)), "too many descriptors of user 2001: the limit is 4 (--max-fds-per-user)");
  memory.push_back(bystander.Allocate(4096));
}

TEST_CASE("Quotas: the host cache of a user counts over all connections", "[unit]") {
  Config config = CacheOf(4);
  config.domain_mode = daemon::DomainMode::kNode;
  config.max_host_cache_per_user = kSlab;
  Node node(config);
  OffloadingWorker first(node, "first", kAttacker), second(node, "second", kAttacker), bystander(node, "honest", kBystander);
  REQUIRE(first.PrepareStore(first.Write(0, kSlots, 1)) == static_cast<int>(kSlots));
  REQUIRE(bystander.PrepareStore(bystander.Write(0, kSlots, 5)) == static_cast<int>(kSlots));
  // Another of the user's has no block that could make room, and takes none of the bystander's.
  const kvmwire::PrepareStoreReply reply = second.Offer(second.Write(0, 1, 6));
  CHECK(reply.grants_size() == 0);
  CheckSays(reply.reason(), "user 2001");
  CheckSays(reply.reason(), "--max-host-cache-per-user");
  CHECK(node.Domain().host_cache().bytes() <= 2 * kSlab);
  CHECK(node.Domain().host_cache().blocks() == 2 * kSlots);
}

// Without the limit in SlabQuota::LimitFor the third worker gets slabs, and so on: the processes of
// one user hold any multiple of the host cache. Seen.
TEST_CASE("Quotas: memory of closed slabs counts for its user while a process may write it", "[unit]") {
  Node node(CacheOf(2));
  std::vector<Received> kept;
  SteadyTime now = std::chrono::steady_clock::now();
  std::vector<std::unique_ptr<OffloadingWorker>> workers;
  const auto next_worker = [&]() -> OffloadingWorker& {
    const auto round = static_cast<std::uint32_t>(workers.size());
    workers.push_back(std::make_unique<OffloadingWorker>(node, "worker-" + std::to_string(round), kAttacker, 64, kBlockBytes << round));
    // Blocks of another size: the slabs of the worker before are closed.
    for (int i = 0; i < 4; ++i) {
      node.WorkAll();
      node.broker.Tick(now += seconds(1));
    }
    return *workers.back();
  };
  const auto end = [&](OffloadingWorker& worker) {
    node.Handle(worker.id, worker.region.UnregisterMessage());
    node.WorkAll();
    node.broker.Leave(worker.id, true);
    node.WorkAll();
  };
  for (int round = 0; round < 2; ++round) {
    OffloadingWorker& worker = next_worker();
    const std::uint32_t slots = 2 * kSlots >> round;
    for (std::uint32_t from = 0; from < slots; from += slots / 2)
      REQUIRE(worker.PrepareStore(worker.Write(from, from + slots / 2)) == static_cast<int>(slots / 2));
    for (int slab = 0; slab < 2; ++slab) kept.push_back(worker.connection.Take(Body::kSlabGrant));
    end(worker);
  }
  OffloadingWorker& worker = next_worker();
  const kvmwire::PrepareStoreReply refused = worker.Offer(worker.Write(0, 1));
  CHECK(refused.grants_size() == 0);
  CheckSays(refused.reason(), "user 2001: processes still have memory of closed slabs");
  kept.clear();
  for (const auto& each : workers) each->connection.sent.clear();
  node.broker.Tick(now += seconds(1));
  CHECK(worker.PrepareStore(worker.Write(1, 2)) == 1);
}

TEST_CASE("Quotas: others' replicas keep no worker's own block out", "[unit]") {
  Node node(Shared());
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<std::unique_ptr<WireRegion>> regions;
  const auto publish = [&](std::uint32_t uid, int region) {
    workers.push_back(std::make_unique<Worker>(node, uid));
    Worker& worker = *workers.back();
    regions.push_back(std::make_unique<WireRegion>("pool-" + std::to_string(region), LlamaSpec(), 8));
    node.Register(worker.id, worker.connection, *regions.back());
    node.Handle(worker.id, regions.back()->PublishMessage({regions.back()->Write(0, {7, 7})}));
    return worker.connection.Take(Body::kPublishAck).message.publish_ack();
  };
  for (int i = 0; i < 8; ++i) REQUIRE(publish(kAttacker, i).inserted() == 1);
  // The attacker itself gets no ninth, neither before nor after.
  CHECK(publish(kAttacker, 8).refused_replicas() == 1);
  CHECK(publish(kBystander, 0).inserted() == 1);
  CHECK(publish(kAttacker, 9).refused_replicas() == 1);
  CHECK(node.Domain().entries() == 8);
}

TEST_CASE("Quotas: the first user who registers a model does not decide the size of its blocks", "[unit]") {
  Node node(Shared());
  Worker squatter(node, kAttacker), honest(node, kBystander);
  WireRegion wrong("wrong", LlamaSpec(), 8, 64), right("right", LlamaSpec(), 8, 128), other("other", LlamaSpec(), 8, 64);
  node.Register(squatter.id, squatter.connection, wrong);
  node.Register(honest.id, honest.connection, right);
  CHECK(node.Domain().regions() == 2);
  // Of one user it is a mistake, and said.
  CheckSays(honest.Refused(other.RegisterMessage(), other.fds()), "blocks of 64 bytes");
}

}  // namespace kvm::test
