// Events of a real kvmd-mesh: what workers publish and describe reaches subscribers, those that
// have missed something recover, and a kvmd-mesh that was started anew goes on.
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/mesh/event_reader.h"
#include "tests/support/mesh/event_subscriber.h"
#include "tests/support/mesh/mesh_process.h"
#include "tests/support/process/eventually.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::EventMessage;
using test::EventReader;
using test::EventSubscriber;
using test::Eventually;
using test::KvmdProcess;
using test::MeshProcess;
using test::StatusOf;
using test::Worker;

constexpr std::chrono::milliseconds kPatience = 60s;

const std::vector<std::string> kAnyPort{"--events", "tcp://127.0.0.1:*", "--events-replay", "tcp://127.0.0.1:*"};

std::unique_ptr<Worker> Start(const KvmdProcess& kvmd, Shard shard = {}) {
  return test::StartWorker({.socket = kvmd.socket(), .name = "worker", .shard = shard});
}

// The token ids of a worker's blocks do not matter here: any will do.
std::vector<std::uint32_t> TokensFor(const Worker& worker, std::span<const BlockKey> keys) {
  std::vector<std::uint32_t> out;
  for (const BlockKey& key : keys)
    for (std::uint32_t i = 0; i < worker.model().spec.block_tokens; ++i) out.push_back(static_cast<std::uint32_t>(key.hi + i));
  return out;
}

DescribeOutcome Describe(Worker& worker, const MeshProcess& mesh, const std::string& prompt) {
  const std::vector<BlockKey> keys = worker.Keys(prompt);
  DescribeOptions options;
  options.mesh_socket = mesh.socket();
  options.deadline = After(kPatience);
  const auto told = worker.client().DescribeBlocks(worker.model().spec, keys, TokensFor(worker, keys), options);
  KVM_REQUIRE_OK(told);
  return *told;
}

void Publish(Worker& worker, const std::string& prompt, std::uint32_t first_block = 0) {
  worker.Publish(prompt, first_block);
  KVM_REQUIRE_OK(worker.Flush());
}

// Follows a stream as a router does: where numbers are missing, it asks for them.
class Router {
 public:
  explicit Router(const MeshProcess& mesh) : Router(StatusOf(mesh).events()) {}
  explicit Router(const kvmmesh::EventStatus& events) : subscriber_(events.endpoint(), events.replay_endpoint()) {}

  // False: no message has come in time.
  bool Follow(std::chrono::milliseconds timeout = kPatience) {
    const std::optional<EventMessage> message = subscriber_.Receive(timeout);
    if (!message) return false;
    went_back_ = went_back_ || message->sequence <= live_;
    live_ = message->sequence;
    if (message->sequence <= latest_) {
      // A replay has had it already.
    } else if (message->sequence == latest_ + 1) {
      Apply(*message);
    } else {
      ++gaps_;
      for (const EventMessage& missed : subscriber_.Replay(latest_ + 1))
        if (missed.sequence > latest_) Apply(missed);
      if (message->sequence > latest_) Apply(*message);
    }
    return true;
  }
  bool FollowUntil(std::size_t blocks) {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (reader.blocks().size() != blocks && std::chrono::steady_clock::now() < deadline) Follow(1s);
    return reader.blocks().size() == blocks;
  }
  // Takes the next message, and does as if it had never come.
  EventMessage Lose() {
    const auto message = subscriber_.Receive(kPatience);
    REQUIRE(message);
    return *message;
  }

  EventSubscriber& subscriber() { return subscriber_; }
  std::uint64_t latest() const { return latest_; }
  int gaps() const { return gaps_; }
  bool went_back() const { return went_back_; }
  const std::string& topic() const { return topic_; }
  EventReader reader;

 private:
  void Apply(const EventMessage& message) {
    latest_ = message.sequence;
    topic_ = message.topic;
    reader.Apply(message.payload);
  }

  EventSubscriber subscriber_;
  std::uint64_t latest_ = 0, live_ = 0;
  bool went_back_ = false;
  int gaps_ = 0;
  std::string topic_;
};

}  // namespace

TEST_CASE("Mesh events: blocks that a worker publishes and describes are told, and their end", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a", {}, {}, kAnyPort);
  Router router(mesh);
  const auto worker = Start(kvmd);
  Publish(*worker, "p:16");
  const DescribeOutcome told = Describe(*worker, mesh, "p:16");
  CHECK(told.wanted);
  CHECK(told.taken == 16);
  REQUIRE(router.FollowUntil(16));
  CHECK(router.topic() == "kv@a@" + worker->model().spec.model_id);
  const std::vector<BlockKey> keys = worker->Keys("p:16");
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto& block = router.reader.blocks().at({"CPU", keys[i].lo});
    CHECK(block.parent == (i == 0 ? std::nullopt : std::optional(keys[i - 1].lo)));
    CHECK(block.tokens[0] == static_cast<std::uint32_t>(keys[i].hi));
  }
  // Blocks 10 to 15 are withdrawn.
  const std::vector<std::uint32_t> again{10, 11, 12, 13, 14, 15};
  worker->region().Retract(again);
  REQUIRE(router.FollowUntil(10));
  CHECK(router.reader.refused().empty());
  const kvmmesh::EventStatus status = StatusOf(mesh).events();
  CHECK(status.blocks() == 10);
  CHECK(status.stored_blocks() == 16);
  CHECK(status.removed_blocks() == 6);
  CHECK(status.described_blocks() == 16);
}

TEST_CASE("Mesh events: blocks of other ranks are not told, and those that no worker has described are counted", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a", {}, {}, kAnyPort);
  ModelSpec spec = test::SmallSpec();
  spec.tp_size = 2;
  const auto rank = [&](std::uint16_t number) {
    return test::StartWorker(
        {.socket = kvmd.socket(), .name = "rank" + std::to_string(number), .spec = spec, .shard = {.tp_rank = number, .tp_size = 2}});
  };
  const auto first = rank(0), second = rank(1);
  Publish(*first, "p:8");
  Publish(*second, "p:8");
  REQUIRE(Eventually([&] { return StatusOf(mesh).keys() == 16; }, kPatience));
  REQUIRE(Eventually([&] { return StatusOf(mesh).events().undescribed_blocks() == 8; }, kPatience));
  Describe(*first, mesh, "p:8");
  Describe(*second, mesh, "p:8");
  Router router(mesh);
  REQUIRE(router.FollowUntil(8));
  REQUIRE(Eventually([&] { return StatusOf(mesh).events().described_blocks() == 16; }, kPatience));
  CHECK(StatusOf(mesh).events().blocks() == 8);
  CHECK(StatusOf(mesh).events().undescribed_blocks() == 0);
}

TEST_CASE("Mesh events: a subscriber that comes late learns of everything by itself, though nothing changes", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a", {}, {}, kAnyPort);
  const auto worker = Start(kvmd);
  Publish(*worker, "p:32");
  Describe(*worker, mesh, "p:32");
  REQUIRE(Eventually([&] { return StatusOf(mesh).events().blocks() == 32; }, kPatience));
  Router router(mesh);
  REQUIRE(router.FollowUntil(32));
  CHECK(router.gaps() == 1);
  CHECK(router.reader.refused().empty());
}

TEST_CASE("Mesh events: a subscriber that loses batches recovers them by the replay", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a", {}, {}, kAnyPort);
  const auto worker = Start(kvmd);
  Router router(mesh);
  Publish(*worker, "p:4");
  Describe(*worker, mesh, "p:4");
  REQUIRE(router.FollowUntil(4));
  const int gaps = router.gaps();
  Publish(*worker, "p:20");
  Describe(*worker, mesh, "p:20");
  // All that is told meanwhile is lost, until it is known to have been told.
  std::uint64_t lost = 0;
  REQUIRE(Eventually(
      [&] {
        ++lost;
        router.Lose();
        return StatusOf(mesh).events().blocks() == 20;
      },
      kPatience));
  CHECK(router.reader.blocks().size() == 4);
  REQUIRE(router.FollowUntil(20));
  CHECK(router.gaps() == gaps + 1);
  CHECK(router.reader.refused().empty());
}

TEST_CASE("Mesh events: a kvmd-mesh that was killed and started anew clears what was told, and its numbers go on", "[integration]") {
  KvmdProcess kvmd;
  auto mesh = std::make_unique<MeshProcess>(kvmd, "a", std::vector<std::string>{}, std::vector<std::string>{}, kAnyPort);
  const kvmmesh::EventStatus where = StatusOf(*mesh).events();
  const auto worker = Start(kvmd);
  Router router(*mesh);
  Publish(*worker, "p:12");
  const DescribeOutcome told = Describe(*worker, *mesh, "p:12");
  REQUIRE(router.FollowUntil(12));
  const std::uint64_t before = router.latest();
  mesh->Kill();
  mesh.reset();
  mesh = std::make_unique<MeshProcess>(kvmd, "a", std::vector<std::string>{}, std::vector<std::string>{},
                                       std::vector<std::string>{"--events", where.endpoint(), "--events-replay", where.replay_endpoint()});
  // It has not been told the tokens yet, so nothing is known to be true.
  REQUIRE(router.FollowUntil(0));
  CHECK(router.latest() > before);
  CHECK_FALSE(router.went_back());
  const DescribeOutcome again = Describe(*worker, *mesh, "p:12");
  CHECK(again.process != told.process);
  REQUIRE(router.FollowUntil(12));
  CHECK(router.reader.refused().empty());
  CHECK(StatusOf(*mesh).events().snapshots() >= 1);
}

TEST_CASE("Mesh events: what is no request for a replay is passed over", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a", {}, {}, kAnyPort);
  const auto worker = Start(kvmd);
  Publish(*worker, "p:4");
  Describe(*worker, mesh, "p:4");
  REQUIRE(Eventually([&] { return StatusOf(mesh).events().blocks() == 4; }, kPatience));
  Router router(mesh);
  router.subscriber().SendRaw({""});
  router.subscriber().SendRaw({"", "short"});
  router.subscriber().SendRaw({"x", "12345678"});
  router.subscriber().SendRaw({"", "12345678", "more", "and more", "and more"});
  router.subscriber().SendRaw({std::string(1 << 20, 'x')});
  EventReader reader;
  for (const EventMessage& message : router.subscriber().Replay(0)) reader.Apply(message.payload);
  CHECK(reader.blocks().size() == 4);
  CHECK(router.subscriber().Replay(~std::uint64_t{0} - 1).empty());
  CHECK(mesh.running());
}

TEST_CASE("Mesh events: a socket that is a file is this user's only, and one that is in use is refused", "[integration]") {
  KvmdProcess kvmd;
  const std::string path = kvmd.dir().path().string() + "/events.sock";
  MeshProcess mesh(kvmd, "a", {}, {}, {"--events", "ipc://" + path});
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  CHECK((info.st_mode & 0077) == 0);
  MeshProcess other(kvmd, "b", {}, {}, kAnyPort);
  const std::string taken = StatusOf(other).events().endpoint();
  const std::string log = kvmd.dir().path().string() + "/third.log";
  test::ChildProcess third({test::MeshBinary(), "--node", "c", "--socket", kvmd.socket(), "--mesh-socket",
                            kvmd.dir().path().string() + "/third.sock", "--listen", "127.0.0.1:0", "--events", taken},
                           log);
  const auto end = third.Wait(kPatience);
  REQUIRE(end);
  CHECK(end->code == 1);
}

TEST_CASE("Mesh events: without them a description is not wanted, and without kvmd-mesh it is an error", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a");
  const auto worker = Start(kvmd);
  const DescribeOutcome told = Describe(*worker, mesh, "p:4");
  CHECK_FALSE(told.wanted);
  CHECK(told.taken == 0);
  CHECK_FALSE(StatusOf(mesh).has_events());
  const std::vector<BlockKey> keys = worker->Keys("p:4");
  std::vector<std::uint32_t> tokens = TokensFor(*worker, keys);
  DescribeOptions options;
  options.mesh_socket = kvmd.dir().path().string() + "/none.sock";
  KVM_CHECK_ERROR(worker->client().DescribeBlocks(worker->model().spec, keys, tokens, options), Errc::kUnavailable, "");
  tokens.pop_back();
  options.mesh_socket = mesh.socket();
  KVM_CHECK_ERROR(worker->client().DescribeBlocks(worker->model().spec, keys, tokens, options), Errc::kInvalidArgument, "15 tokens for 4");
}

TEST_CASE("Mesh events: kvctl shows them, and so do metrics with which promtool finds nothing wrong", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a", {}, {}, kAnyPort);
  const auto worker = Start(kvmd);
  Publish(*worker, "p:8");
  Describe(*worker, mesh, "p:4");
  REQUIRE(Eventually([&] { return StatusOf(mesh).events().undescribed_blocks() == 4; }, kPatience));
  const test::Sandbox sandbox;
  const test::Sandbox::Output status = sandbox.Run("mesh status --mesh-socket " + mesh.socket());
  CHECK(status.code == 0);
  CHECK(status.out.find("4 blocks; 4 more have no tokens") != std::string::npos);
  const boost::json::value json = sandbox.Run("--json mesh status --mesh-socket " + mesh.socket()).Json();
  CHECK(test::Number(json.at("events"), "blocks") == 4);
  const std::string scrape = "--socket " + kvmd.socket() + " --timeout-ms 20000 exporter --once --mesh-socket " + mesh.socket();
  const test::Sandbox::Output metrics = sandbox.Run(scrape);
  if (metrics.code != 0) KVM_SKIP("kvctl was built without its exporter");
  CHECK(metrics.out.find("kvmd_mesh_up{socket=\"" + mesh.socket() + "\"} 1") != std::string::npos);
  CHECK(metrics.out.find(",node=\"a\"} 4") != std::string::npos);
  if (::system("command -v promtool >/dev/null") != 0) KVM_SKIP("no promtool here (scripts/install_deps.sh --metrics)");
  const std::string file = kvmd.dir().path().string() + "/metrics";
  std::ofstream(file) << metrics.out;
  CHECK(::system(("promtool check metrics <" + file).c_str()) == 0);
}

TEST_CASE("Mesh events: a description of more blocks than a message holds is taken whole", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a", {}, {}, kAnyPort);
  const auto worker = Start(kvmd);
  const std::string prompt = "p:20000";
  CHECK(Describe(*worker, mesh, prompt).taken == 20'000);
  Publish(*worker, "p:60");
  REQUIRE(Eventually([&] { return StatusOf(mesh).events().blocks() == 60; }, kPatience));
  CHECK(StatusOf(mesh).events().described_blocks() == 20'000);
}
