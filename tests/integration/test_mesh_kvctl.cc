// What kvctl mesh shows, and that a join keeps to the cost rule that it explains.
#include <sys/socket.h>
#include <sys/un.h>

#include <functional>
#include <vector>

#include "proto/mesh/mesh_frame.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/mesh/lying_peer.h"
#include "tests/support/mesh/mesh_process.h"
#include "tests/support/process/lingering_socket.h"
#include "tests/support/process/socket_pair.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::Eventually;
using test::HonestAnswer;
using test::JoinBy;
using test::KvmdProcess;
using test::LyingPeer;
using test::MeshProcess;
using test::Number;
using test::Sandbox;
using test::Text;
using test::Worker;

std::string Hex(const std::vector<BlockKey>& keys) {
  std::string out;
  for (const BlockKey& key : keys) out += (out.empty() ? "" : ",") + key.ToHex();
  return out;
}

// A node whose one peer has the prompts p:6 and q:6.
struct Setup {
  Setup()
      : joiner(test::StartWorker({.socket = kvmd.socket(), .name = "joiner"})),
        source("source", joiner->client().domain(), Claimed(), HonestAnswer),
        mesh(kvmd, "b", {source.as_peer()}) {
    REQUIRE(Eventually([&] { return Peer().at("fresh").as_bool(); }));
  }

  std::vector<BlockKey> Claimed() const {
    std::vector<BlockKey> out = joiner->Keys("p:6");
    for (const BlockKey& key : joiner->Keys("q:6")) out.push_back(key);
    return out;
  }
  boost::json::value Mesh(const std::string& arguments) const {
    const Sandbox::Output output =
        sandbox.Run("--json --socket " + kvmd.socket() + " --timeout-ms 20000 mesh " + arguments + " --mesh-socket " + mesh.socket());
    INFO(output.err);
    REQUIRE(output.code == 0);
    return output.Json();
  }
  boost::json::value Peer() const { return Mesh("peers").at("peers").at(0); }
  JoinOutcome Join(const std::string& prompt, double prefill_tokens_per_s = 0) {
    JoinOptions options = JoinBy(mesh, 20s);
    options.prefill_tokens_per_s = prefill_tokens_per_s;
    return joiner->client().JoinCache(joiner->region(), joiner->Keys(prompt), options);
  }

  KvmdProcess kvmd;
  Sandbox sandbox;
  std::unique_ptr<Worker> joiner;
  LyingPeer source;
  MeshProcess mesh;
};

}  // namespace

TEST_CASE("kvctl mesh: status and peers show what was joined, from whom, and how fast", "[integration]") {
  Setup setup;
  CHECK(setup.Join("p:6").fetched == 6);
  const boost::json::value status = setup.Mesh("status");
  CHECK(Text(status, "node") == "b");
  CHECK(Text(status, "domain") == setup.joiner->client().domain());
  CHECK_FALSE(status.at("encrypted").as_bool());
  CHECK(Text(status, "transfer") == "tcp");
  CHECK(Number(status, "ucx_received_bytes") == 0);
  CHECK(Number(status, "joined_blocks") == 6);
  const boost::json::value peer = setup.Peer();
  CHECK(Text(peer, "node") == "source");
  CHECK(Number(peer, "fetched_blocks") == 6);
  CHECK(Number(peer, "bytes_per_s") > 0);
  CHECK(Number(peer, "round_trip_us") > 0);
  const Sandbox::Output text = setup.sandbox.Run("mesh peers --mesh-socket " + setup.mesh.socket());
  CHECK(text.code == 0);
  CHECK(text.out.find("answers") != std::string::npos);
}

TEST_CASE("kvctl mesh find: how far a prompt reaches here and into the peers' summaries", "[integration]") {
  Setup setup;
  setup.joiner->Publish("p:2", 0);
  KVM_REQUIRE_OK(setup.joiner->Flush());
  boost::json::value found;
  CHECK(Eventually([&] {
    found = setup.Mesh("find --keys " + Hex(setup.joiner->Keys("p:9")));
    return Number(found, "local") == 2;
  }));
  CHECK(Text(found.at("nodes").at(0), "node") == "source");
  CHECK(Number(found.at("nodes").at(0), "blocks") == 6);
}

TEST_CASE("kvctl mesh explain: what a join would do, without doing it", "[integration]") {
  Setup setup;
  const std::string keys = "explain --keys " + Hex(setup.joiner->Keys("p:6"));
  const boost::json::value would = setup.Mesh(keys);
  CHECK(Text(would, "reason").empty());
  CHECK(would.at("sources").at(0).at("chosen").as_bool());
  CHECK(setup.source.fetches() == 0);
  const boost::json::value too_few = setup.Mesh(keys + " --min-blocks 7");
  CHECK(Text(too_few, "reason").find("fewer than the 7 wanted") != std::string::npos);
  CHECK_FALSE(too_few.at("sources").at(0).at("chosen").as_bool());
}

TEST_CASE("Mesh: blocks are not fetched if the worker computes them faster, and the reason is told everywhere", "[integration]") {
  Setup setup;
  CHECK(setup.Join("p:6", 1e12).fetched == 6);  // the peer had not been measured
  const JoinOutcome faster = setup.Join("q:6", 1e12);
  CHECK(faster.blocks == 0);
  CHECK(faster.reason.find("source: fetching 6 blocks would take") == 0);
  CHECK(setup.source.fetches() == 1);
  const boost::json::value would = setup.Mesh("explain --keys " + Hex(setup.joiner->Keys("q:6")) + " --prefill-blocks-per-s 1e12");
  CHECK(Text(would, "reason").find("computing them") != std::string::npos);
  const boost::json::value recent = setup.Mesh("explain").at("joins").at(0);
  CHECK(Text(recent, "reason") == faster.reason);
  CHECK(Number(recent, "keys") == 6);
  CHECK(Number(recent, "fetched") == 0);
  // At a rate that no engine is slower than, and without one, they are.
  CHECK(setup.Join("q:6", 1e-3).fetched == 6);
}

TEST_CASE("kvctl mesh: without a mesh process it says so, with the exit code of an unreachable daemon", "[integration]") {
  const Sandbox sandbox;
  for (const char* view : {"status", "peers", "find --keys 00000000000000000000000000000001", "explain"}) {
    const Sandbox::Output output = sandbox.Run("mesh " + std::string(view) + " --mesh-socket " + sandbox.path().string() + "/none.sock");
    INFO(view);
    CHECK(output.code == 2);
    CHECK(output.err.find("no kvmd-mesh") != std::string::npos);
  }
}

TEST_CASE("kvctl replay: with two nodes a worker's misses are fetched from the other one", "[integration]") {
  const KvmdProcess kvmd_a, kvmd_b;
  const MeshProcess mesh_a(kvmd_a, "a");
  const MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()});
  const Sandbox sandbox;
  const auto replay = [&](const std::string& mesh_socket) {
    const Sandbox::Output output =
        sandbox.Run("replay --json --node " + kvmd_a.socket() + " --node " + kvmd_b.socket() + mesh_socket +
                    " --join-ms 20000 --workers 2 --workload chat --requests 40 --pool-blocks 600 --block-bytes 64 "
                    "--backend host --in-order --prefill-takes-time --prefill-us-per-token 10");
    INFO(output.err);
    REQUIRE(output.code == 0);
    return output.Json();
  };
  const boost::json::value alone = replay(""), joined = replay("," + mesh_b.socket());
  CHECK(Number(alone, "nodes") == 2);
  CHECK(Number(alone, "blocks_imported") == 0);
  CHECK(Number(alone, "blocks_joined") == 0);
  CHECK(Number(joined, "blocks_joined") > 0);
  CHECK(Number(joined, "blocks_imported") >= Number(joined, "blocks_joined"));
  CHECK(Number(joined, "blocks_hit") > Number(alone, "blocks_hit"));
  CHECK(Number(joined, "mismatched_blocks") == 0);
  CHECK(Number(joined, "failed_imports") == 0);
}

// kvctl gets the last descriptor of that socket, from who listens where it looks for kvmd-mesh.
// Where ReceiveBytes does not look before it reads, kvctl waits in the first section; where urgent
// bytes do not come in their order (ReceiveInOrder), in the second; and where AskMesh closes its
// connection itself, in the third: seen.
TEST_CASE("kvctl mesh: a socket whose close waits for somebody, in an answer, does not stop who asks", "[integration]") {
  const Sandbox sandbox;
  const std::string path = sandbox.path() / "mesh.sock", log = sandbox.path() / "kvctl.log";
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  REQUIRE(::listen(listener.get(), 1) == 0);
  Result<ctl::ChildProcess> kvctl =
      ctl::ChildProcess::Start(test::Kvctl(), {"--timeout-ms", "60000", "mesh", "status", "--mesh-socket", path}, {.log_path = log});
  KVM_REQUIRE_OK(kvctl);
  UniqueFd asked(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  char request[256];
  REQUIRE(::recv(asked.get(), request, sizeof(request), 0) > 0);
  test::LingeringSocket lingering;
  const std::vector<int> sent{lingering.socket.get()};
  test::StoppedProcess stopped(kvctl->pid());
  SECTION("with it") { REQUIRE(test::SendRaw(asked.get(), "KV", sent) == 2); }
  SECTION("with an urgent byte") {
    REQUIRE(test::SendRaw(asked.get(), "K", sent, MSG_OOB) == 1);
    REQUIRE(test::SendRaw(asked.get(), "V") == 1);  // with it, the kernel drops that byte
  }
  SECTION("behind it") {
    const mesh::MeshHeaderBytes header = mesh::EncodeMeshHeader({0, 0});
    REQUIRE(test::SendRaw(asked.get(), {reinterpret_cast<const char*>(header.data()), header.size()}) > 0);
    REQUIRE(test::SendRaw(asked.get(), "x", sent) == 1);
  }
  lingering.socket.Reset();
  stopped.Resume();
  CHECK(kvctl->WaitFor(30s));
}

TEST_CASE("kvctl doctor: says how many peers of kvmd-mesh answer, and that it does not answer itself", "[integration]") {
  Setup setup;
  const auto doctor = [&] {
    const Sandbox::Output output =
        setup.sandbox.Run("doctor --socket " + setup.kvmd.socket() + " --timeout-ms 20000 --mesh-socket " + setup.mesh.socket());
    CHECK(output.code == 0);
    return output.out;
  };
  const std::string well = doctor();
  INFO(well);
  CHECK(well.find("node b, 1 of 1 peer answers") != std::string::npos);
  setup.mesh.Kill();
  const std::string gone = doctor();
  INFO(gone);
  CHECK(gone.find("kvmd-mesh does not answer") != std::string::npos);
}
