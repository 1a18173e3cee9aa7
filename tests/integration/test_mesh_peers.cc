// How a mesh process deals with peers that close connections, are slow, or have not been asked yet.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <csignal>
#include <fstream>
#include <future>
#include <sstream>
#include <vector>

#include "proto/mesh/mesh_request.h"
#include "tests/catch.h"
#include "tests/support/mesh/lying_peer.h"
#include "tests/support/mesh/mesh_process.h"
#include "tests/support/process/lingering_socket.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/process/sanitized.h"
#include "tests/support/process/socket_pair.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::Eventually;
using test::HonestAnswer;
using test::ImportCheck;
using test::JoinBy;
using test::KvmdProcess;
using test::LingeringSocket;
using test::LyingPeer;
using test::MeshProcess;
using test::PeerAnswer;
using test::StatusOf;
using test::StoppedProcess;
using test::Worker;

std::unique_ptr<Worker> Start(const KvmdProcess& kvmd, const std::string& name, std::uint64_t block_bytes = 4096) {
  return test::StartWorker({.socket = kvmd.socket(), .name = name, .block_bytes = block_bytes});
}

std::vector<BlockKey> KeysOf(const Worker& worker, std::initializer_list<const char*> prompts) {
  std::vector<BlockKey> out;
  for (const char* prompt : prompts)
    for (const BlockKey& key : worker.Keys(prompt)) out.push_back(key);
  return out;
}

JoinOutcome Join(Worker& worker, const MeshProcess& mesh, const std::string& prompt, const std::string& hint = {},
                 std::chrono::milliseconds within = 20s) {
  JoinOptions options = JoinBy(mesh, within);
  options.source_hint = hint;
  return worker.client().JoinCache(worker.region(), worker.Keys(prompt), options);
}

// A summary of so many buckets of 8 bytes.
PeerAnswer SnapshotOf(std::uint64_t buckets) {
  PeerAnswer answer;
  answer.message.mutable_summary()->set_epoch(1);
  answer.message.mutable_summary()->set_snapshot(true);
  answer.message.mutable_summary()->set_buckets(buckets);
  answer.payload.assign(8 * buckets, 'x');
  return answer;
}

std::vector<PeerAnswer> Slowly(const kvmmesh::Fetch& fetch, std::size_t step_bytes, std::chrono::milliseconds pause) {
  std::vector<PeerAnswer> out = HonestAnswer(fetch);
  for (PeerAnswer& answer : out) {
    answer.step_bytes = step_bytes;
    answer.pause = pause;
  }
  return out;
}

}  // namespace

TEST_CASE("Mesh: a join after the source has closed the idle connection opens another one, and is complete", "[integration]") {
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner");
  LyingPeer source("source", joiner->client().domain(), KeysOf(*joiner, {"p:4", "q:4"}), HonestAnswer);
  source.CloseAfterAnswers();
  MeshProcess mesh(kvmd, "b", {source.as_peer()});
  CHECK(Join(*joiner, mesh, "p:4", "source").blocks == 4);
  const JoinOutcome second = Join(*joiner, mesh, "q:4", "source");
  CHECK(second.blocks == 4);
  CHECK(second.reason.empty());
  CHECK(joiner->FindAndImport("q:4", 10).wrong == 0);
}

TEST_CASE("Mesh: a source that closes the connection between two questions for its summary is no failing source", "[integration]") {
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner");
  LyingPeer source("source", joiner->client().domain(), KeysOf(*joiner, {"p:4"}), HonestAnswer);
  source.CloseAfterAnswers();
  MeshProcess mesh(kvmd, "b", {source.as_peer()});
  REQUIRE(Eventually([&] { return StatusOf(mesh).peers(0).fresh(); }));
  // Before kvmd had been connected to, there may have been one.
  const std::uint64_t before = StatusOf(mesh).peers(0).failures();
  const int answered = source.summaries();
  REQUIRE(Eventually([&] { return source.summaries() >= answered + 5; }));
  const kvmmesh::Status status = StatusOf(mesh);
  INFO(status.peers(0).last_error());
  CHECK(status.peers(0).failures() == before);
}

TEST_CASE("Mesh: a block that takes longer than the stall timeout is received while its bytes arrive", "[integration]") {
  constexpr std::size_t kBlockBytes = std::size_t{2} << 20;
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner", kBlockBytes);
  // 16 steps of 128 KiB: twice the stall timeout.
  LyingPeer source("source", joiner->client().domain(), KeysOf(*joiner, {"p:1"}),
                   [](const kvmmesh::Fetch& fetch) { return Slowly(fetch, std::size_t{128} << 10, 250ms); });
  MeshProcess mesh(kvmd, "b", {source.as_peer()}, {}, {"--stall-timeout-ms", "2000", "--pool-size", "8M"});
  const JoinOutcome joined = Join(*joiner, mesh, "p:1", "source", 60s);
  CHECK(joined.blocks == 1);
  CHECK(joined.reason.empty());
  const ImportCheck import = joiner->FindAndImport("p:1", 1);
  CHECK(import.valid == 1);
  CHECK(import.wrong == 0);
}

TEST_CASE("Mesh: a source that sends single bytes makes no progress, and is left", "[integration]") {
  constexpr std::size_t kBlockBytes = std::size_t{1} << 20;
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner", kBlockBytes);
  LyingPeer source("source", joiner->client().domain(), KeysOf(*joiner, {"p:1"}), [](const kvmmesh::Fetch& fetch) {
    std::vector<PeerAnswer> out = HonestAnswer(fetch);
    out[0].step_bytes = 512;
    out[0].pause = 20ms;
    return out;
  });
  MeshProcess mesh(kvmd, "b", {source.as_peer()}, {}, {"--stall-timeout-ms", "300", "--pool-size", "8M"});
  const JoinOutcome joined = Join(*joiner, mesh, "p:1", "source", 60s);
  CHECK(joined.blocks == 0);
  CHECK(joined.reason.find("no progress") != std::string::npos);
  CHECK(joiner->Find("p:1").empty());
}

TEST_CASE("Mesh: SIGTERM in the middle of a fetch and of a greeting ends the process in an orderly way", "[integration]") {
  constexpr std::size_t kBlockBytes = std::size_t{1} << 20;
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner", kBlockBytes);
  LyingPeer source("source", joiner->client().domain(), KeysOf(*joiner, {"p:2"}),
                   [](const kvmmesh::Fetch& fetch) { return Slowly(fetch, std::size_t{64} << 10, 300ms); });
  MeshProcess mesh(kvmd, "b", {source.as_peer()}, {}, {"--pool-size", "8M"});
  const UniqueFd silent = test::ConnectTo(mesh.address());
  auto join = std::async(std::launch::async, [&] { return Join(*joiner, mesh, "p:2", "source"); });
  REQUIRE(Eventually([&] { return source.fetches() == 1; }));
  CHECK(mesh.Stop().clean());
  CHECK(join.get().blocks < 2);
}

// Where a connection may be silent for as long as it likes (WorkerService::NextRequest), no other
// client of this node is answered for ten minutes: seen.
TEST_CASE("Mesh: workers' connections that say nothing keep no worker out", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a", {}, {}, {"--max-connections", "8"});
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 32; ++i) {
    silent.push_back(test::ConnectToPath(mesh.socket()));
    const std::byte part[] = {std::byte{'K'}, std::byte{'V'}};
    if (i % 2 == 0) static_cast<void>(::send(silent.back().get(), part, sizeof(part), MSG_NOSIGNAL));
  }
  CHECK(StatusOf(mesh).node() == "a");
  silent.clear();
  CHECK(StatusOf(mesh).node() == "a");
}

// kvmd-mesh gets the last descriptor of that socket. Where ReceiveBytes does not look before it
// reads, kvmd-mesh waits in the first section; where urgent bytes do not come in their order
// (ReceiveInOrder), in the second; and where BytesOnlySocket::close closes by itself, in the third:
// seen.
TEST_CASE("Mesh: a socket whose close waits for somebody stops no other worker", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a");
  LingeringSocket lingering;
  StoppedProcess stopped(mesh.pid());
  UniqueFd hostile = test::ConnectToPath(mesh.socket());
  const std::vector<int> sent{lingering.socket.get()};
  SECTION("in a request") { REQUIRE(test::SendRaw(hostile.get(), "KV", sent) == 2); }
  SECTION("with an urgent byte") {
    REQUIRE(test::SendRaw(hostile.get(), "K", sent, MSG_OOB) == 1);
    REQUIRE(test::SendRaw(hostile.get(), "V") == 1);  // with it, the kernel drops that byte
  }
  SECTION("behind what is no request") {
    REQUIRE(test::SendRaw(hostile.get(), "this is no request, and long enough") > 0);
    REQUIRE(test::SendRaw(hostile.get(), "x", sent) == 1);
  }
  lingering.socket.Reset();
  hostile.Reset();
  stopped.Resume();
  for (int i = 0; i < 3; ++i) CHECK(StatusOf(mesh).node() == "a");
}

// Where kvmd-mesh does not start its SocketCloser, each waits for the first one: seen.
TEST_CASE("Mesh: workers' connections with descriptors leave none in it, though one's can't be closed", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a");
  REQUIRE(Eventually([&] { return !StatusOf(mesh).domain().empty(); }));
  const int before = test::SettledFds(mesh.pid());
  LingeringSocket lingering;
  {
    StoppedProcess stopped(mesh.pid());
    REQUIRE(test::SendRaw(test::ConnectToPath(mesh.socket()).get(), "K", {lingering.socket.get()}) == 1);
    lingering.socket.Reset();
    stopped.Resume();
  }
  const UniqueFd any(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (int i = 0; i < 50; ++i) REQUIRE(test::SendRaw(test::ConnectToPath(mesh.socket()).get(), "K", {any.get()}) == 1);
  CHECK(StatusOf(mesh).node() == "a");
  CHECK(Eventually([&] { return test::OpenFds(mesh.pid()) <= before; }));
}

// Where WorkerSocket closes the socket that it listens on itself, kvmd-mesh waits: seen.
TEST_CASE("Mesh: a socket whose close waits for somebody keeps no kvmd-mesh from ending", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess mesh(kvmd, "a");
  LingeringSocket lingering;
  StoppedProcess stopped(mesh.pid());
  std::vector<UniqueFd> waiting;
  for (int i = 0; i < 100; ++i) waiting.push_back(test::ConnectToPath(mesh.socket()));
  REQUIRE(test::SendRaw(waiting.back().get(), "x", {lingering.socket.get()}) == 1);
  lingering.socket.Reset();
  mesh.Signal(SIGTERM);
  stopped.Resume();
  CHECK(Eventually([&] { return !mesh.running(); }, 30s));  // a further signal would end the wait
}

TEST_CASE("Mesh: a source that has lied is not asked for a while, not even if a worker names it", "[integration]") {
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner");
  LyingPeer liar("liar", joiner->client().domain(), KeysOf(*joiner, {"p:2", "q:2"}), [](const kvmmesh::Fetch& fetch) {
    std::vector<PeerAnswer> out = HonestAnswer(fetch);
    out[0].payload[7] ^= 1;
    return out;
  });
  MeshProcess mesh(kvmd, "b", {liar.as_peer()});
  CHECK(Join(*joiner, mesh, "p:2", "liar").reason.find("checksum") != std::string::npos);
  REQUIRE(liar.fetches() == 1);
  const JoinOutcome second = Join(*joiner, mesh, "q:2", "liar");
  CHECK(second.blocks == 0);
  CHECK(second.reason.find("not asked for a while") != std::string::npos);
  CHECK(liar.fetches() == 1);
}

TEST_CASE("Mesh: a peer that has not been measured is asked, though another one has been", "[integration]") {
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner");
  const std::vector<BlockKey> keys = KeysOf(*joiner, {"p:2", "q:2"});
  LyingPeer first("first", joiner->client().domain(), keys, HonestAnswer), second("second", joiner->client().domain(), keys, HonestAnswer);
  MeshProcess mesh(kvmd, "b", {first.as_peer(), second.as_peer()});
  REQUIRE(Eventually([&] {
    const kvmmesh::Status status = StatusOf(mesh);
    return status.peers(0).fresh() && status.peers(1).fresh();
  }));
  CHECK(Join(*joiner, mesh, "p:2").blocks == 2);
  CHECK(Join(*joiner, mesh, "q:2").blocks == 2);
  CHECK(first.fetches() == 1);
  CHECK(second.fetches() == 1);
}

TEST_CASE("Mesh: a pool that is smaller than one block is an explained miss, not a larger pool", "[integration]") {
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner");
  LyingPeer source("source", joiner->client().domain(), KeysOf(*joiner, {"p:2"}), HonestAnswer);
  MeshProcess mesh(kvmd, "b", {source.as_peer()}, {}, {"--pool-size", "2K"});
  const JoinOutcome joined = Join(*joiner, mesh, "p:2", "source");
  CHECK(joined.blocks == 0);
  CHECK(joined.reason == "--pool-size: 2048 bytes hold no block of 4096");
}

TEST_CASE("Mesh: a source whose staging memory is smaller than one block says so", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a", {}, {}, {"--staging-size", "2K"});
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()});
  const auto publisher = Start(kvmd_a, "publisher"), joiner = Start(kvmd_b, "joiner");
  publisher->Publish("p:2", 0);
  KVM_REQUIRE_OK(publisher->Flush());
  JoinOutcome joined;
  CHECK(Eventually([&] {
    joined = Join(*joiner, mesh_b, "p:2", "a");
    return joined.reason == "a: its staging memory is smaller than a block";
  }));
  CHECK(joined.blocks == 0);
}

TEST_CASE("Mesh: two mesh processes of a user beside one kvmd both bring blocks", "[integration]") {
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner");
  LyingPeer source("source", joiner->client().domain(), KeysOf(*joiner, {"p:2", "q:2"}), HonestAnswer);
  MeshProcess one(kvmd, "b", {source.as_peer()}), other(kvmd, "c", {source.as_peer()});
  CHECK(Join(*joiner, one, "p:2", "source").blocks == 2);
  const JoinOutcome joined = Join(*joiner, other, "q:2", "source");
  INFO(joined.reason);
  CHECK(joined.blocks == 2);
}

// Without the pause it is asked again at once, for ever, and no failure is counted.
TEST_CASE("Mesh: a source whose summary never continues the one before is asked anew once between two pauses", "[integration]") {
  KvmdProcess kvmd;
  LyingPeer source("source", "uid-" + std::to_string(::geteuid()), {}, HonestAnswer);
  PeerAnswer memory = SnapshotOf(1), disk;
  memory.message.mutable_summary()->set_has_disk(true);
  disk.message.mutable_summary()->set_epoch(2);
  disk.message.mutable_summary()->set_disk(true);
  source.AnswerSummaries(memory);
  source.AnswerDiskSummaries(disk);
  MeshProcess mesh(kvmd, "b", {source.as_peer()});
  REQUIRE(Eventually([&] { return source.summaries() >= 4; }));
  const std::uint64_t failures = StatusOf(mesh).peers(0).failures();
  const int asked = source.summaries();
  REQUIRE(Eventually([&] { return StatusOf(mesh).peers(0).failures() >= failures + 3; }));
  const auto since = static_cast<std::uint64_t>(source.summaries() - asked);
  // Twice for both summaries before each failure, and what is under way.
  CHECK(since <= 4 * (StatusOf(mesh).peers(0).failures() - failures + 2));
}

TEST_CASE("Mesh: a summary of more buckets than allowed is refused before its bytes are read", "[integration]") {
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner");
  LyingPeer liar("liar", joiner->client().domain(), {}, HonestAnswer);
  liar.AnswerSummaries(SnapshotOf(std::uint64_t{1} << 20));
  MeshProcess mesh(kvmd, "b", {liar.as_peer()}, {}, {"--max-summary-size", "4M"});
  CHECK(Eventually([&] { return StatusOf(mesh).peers(0).last_error().find("--max-summary-size") != std::string::npos; }));
}

TEST_CASE("Mesh: a summary for which there is no memory is refused, and the process goes on", "[integration]") {
  if (test::kSanitized) KVM_SKIP("a sanitizer's shadow needs the address space that this test takes away");
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner");
  LyingPeer liar("liar", joiner->client().domain(), {}, HonestAnswer);
  liar.AnswerSummaries(SnapshotOf(std::uint64_t{1} << 24));
  // The limit is there before the process connects for the first time: it waits for kvmd. There is
  // room for its threads, whose heaps would else reserve 64 MiB each, and not for the summary.
  MeshProcess mesh(kvmd, "b", {liar.as_peer()}, {"MALLOC_ARENA_MAX=1"}, {"--max-summary-size", "128M", "--pull-interval-ms", "500"});
  std::ifstream statm("/proc/" + std::to_string(mesh.pid()) + "/statm");
  std::uint64_t pages = 0;
  REQUIRE(statm >> pages);
  const rlim_t limit = pages * 4096 + (rlim_t{96} << 20);
  const rlimit room{limit, limit};
  REQUIRE(::prlimit(mesh.pid(), RLIMIT_AS, &room, nullptr) == 0);
  const int before = liar.summaries();
  REQUIRE(Eventually([&] { return liar.summaries() >= before + 2; }, 60s));
  CHECK(mesh.running());
  CHECK(Eventually([&] { return StatusOf(mesh).peers(0).last_error().find("no memory") != std::string::npos; }, 30s));
}

TEST_CASE("Mesh: SIGHUP reads the list of peers again, and a file that is wrong changes nothing", "[integration]") {
  KvmdProcess kvmd;
  const auto joiner = Start(kvmd, "joiner");
  LyingPeer first("first", joiner->client().domain(), KeysOf(*joiner, {"p:2"}), HonestAnswer);
  LyingPeer second("second", joiner->client().domain(), KeysOf(*joiner, {"q:2"}), HonestAnswer);
  const std::string file = kvmd.dir() / "mesh.toml";
  std::ofstream(file) << "peers = [\"" << first.as_peer() << "\"]\n";
  MeshProcess mesh(kvmd, "b", {}, {}, {"--config", file});
  CHECK(Join(*joiner, mesh, "p:2", "first").blocks == 2);
  const auto only = [&](const std::string& name) {
    const kvmmesh::Status status = StatusOf(mesh);
    return status.peers_size() == 1 && status.peers(0).node() == name;
  };
  CHECK(only("first"));
  std::ofstream(file) << "peers = [\"" << second.as_peer() << "\"]\n";
  mesh.Signal(SIGHUP);
  REQUIRE(Eventually([&] { return only("second"); }, 60s));
  CHECK(Join(*joiner, mesh, "q:2", "second").blocks == 2);
  // The one that has left is asked nothing more.
  const int asked = first.summaries(), answered = second.summaries();
  REQUIRE(Eventually([&] { return second.summaries() > answered + 3; }, 60s));
  CHECK(first.summaries() <= asked + 1);

  std::ofstream(file) << "peers = [\"nonsense\"]\n";
  mesh.Signal(SIGHUP);
  const auto logged = [&] { return test::LogOf(kvmd).find("event=peers_not_reloaded") != std::string::npos; };
  CHECK(Eventually(logged, 60s));
  CHECK(only("second"));
}
