// What may happen to a join whose blocks travel over UCX: the prefix is shorter then, no byte is
// wrong, and the slots can be used again.
#include <csignal>
#include <filesystem>
#include <future>
#include <vector>

#include "tests/catch.h"
#include "tests/support/mesh/two_nodes.h"

#if !defined(KVM_HAVE_UCX)
TEST_CASE("Mesh UCX: faults", "[fault]") { KVM_SKIP("built without UCX (libucx-dev)"); }
#else
namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::Eventually;
using test::ImportCheck;
using test::Join;
using test::JoinsEventually;
using test::MeshProcess;
using test::ProcessState;
using test::PublishAndFlush;
using test::StatusOf;
using test::TwoNodes;

const std::vector<std::string> kOverTcp{"UCX_TLS=tcp,self"};

std::vector<std::string> Ucx(const std::vector<std::string>& more = {}) {
  std::vector<std::string> out{"--transfer", "ucx"};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

// Six blocks, so large that a fetch takes a while, into a pool that has no slot more.
struct LargeBlocks : TwoNodes {
  static constexpr std::uint64_t kBytes = std::uint64_t{32} << 20;
  LargeBlocks()
      : TwoNodes(kOverTcp, kOverTcp, Ucx({"--pool-size", "192M", "--staging-size", "64M", "--stall-timeout-ms", "500"}), 14, kBytes) {
    PublishAndFlush(*publisher, "warm:1", 8);
    REQUIRE(JoinsEventually(*joiner, mesh_b, "warm:1", 1));
    REQUIRE(StatusOf(mesh_b).ucx_received_bytes() == kBytes);
    PublishAndFlush(*publisher, "p:6");
  }
  std::future<JoinOutcome> StartJoin(std::chrono::milliseconds within = 30s) {
    return std::async(std::launch::async, [this, within] { return Join(*joiner, mesh_b, "p:6", within, "a"); });
  }
  // The first blocks have come, and more of them are on their way.
  bool Halfway() {
    return Eventually([&] { return StatusOf(mesh_b).ucx_received_bytes() >= 2 * kBytes; }, 30s);
  }
  void CheckNoWrongBytes(const JoinOutcome& joined) {
    const ImportCheck import = joiner->FindAndImport("p:6", 0);
    CHECK(import.valid == joined.blocks);
    CHECK(import.wrong == 0);
  }
  // The pool has six slots, so none of them is lost.
  void CheckJoinsAll(const MeshProcess& mesh) {
    CHECK(JoinsEventually(*joiner, mesh, "p:6", 6));
    const ImportCheck import = joiner->FindAndImport("p:6", 0);
    CHECK(import.valid == 6);
    CHECK(import.wrong == 0);
  }
};

}  // namespace

TEST_CASE("Mesh UCX: a source that is killed while it sends shortens the prefix, and the slots are used again", "[fault]") {
  LargeBlocks nodes;
  auto join = nodes.StartJoin();
  REQUIRE(nodes.Halfway());
  nodes.mesh_a.Kill();
  const JoinOutcome joined = join.get();
  nodes.CheckNoWrongBytes(joined);
  MeshProcess again(nodes.kvmd_a, "c", {}, kOverTcp, Ucx({"--staging-size", "64M"}));
  // Another node b, since the first one knows the old address.
  MeshProcess mesh_b(nodes.kvmd_b, "d", {again.as_peer()}, kOverTcp, Ucx({"--pool-size", "192M"}));
  nodes.CheckJoinsAll(mesh_b);
}

TEST_CASE("Mesh UCX: a receiver that is killed while it receives costs its source nothing", "[fault]") {
  LargeBlocks nodes;
  auto join = nodes.StartJoin();
  REQUIRE(nodes.Halfway());
  nodes.mesh_b.Kill();
  CHECK_FALSE(join.get().reason.empty());
  CHECK(nodes.mesh_a.running());
  MeshProcess again(nodes.kvmd_b, "c", {nodes.mesh_a.as_peer()}, kOverTcp, Ucx({"--pool-size", "192M"}));
  nodes.CheckJoinsAll(again);
  CHECK(StatusOf(again).ucx_received_bytes() == 6 * LargeBlocks::kBytes);
}

TEST_CASE("Mesh UCX: a source that stands still while it sends is left, and what it sends later reaches no slot", "[fault]") {
  LargeBlocks nodes;
  auto join = nodes.StartJoin();
  REQUIRE(nodes.Halfway());
  nodes.mesh_a.Signal(SIGSTOP);
  REQUIRE(Eventually([&] { return ProcessState(nodes.mesh_a.pid()) == 'T'; }));
  const JoinOutcome joined = join.get();
  nodes.CheckNoWrongBytes(joined);
  // The slots get other blocks, before what was under way may arrive.
  PublishAndFlush(*nodes.joiner, "own:1", 8);
  nodes.mesh_a.Signal(SIGCONT);
  nodes.CheckJoinsAll(nodes.mesh_b);
}

TEST_CASE("Mesh UCX: a receiver that stands still is left by its source, whose staging memory is free again", "[fault]") {
  LargeBlocks nodes;
  auto join = nodes.StartJoin(5s);
  REQUIRE(nodes.Halfway());
  nodes.mesh_b.Signal(SIGSTOP);
  REQUIRE(Eventually([&] { return ProcessState(nodes.mesh_b.pid()) == 'T'; }));
  static_cast<void>(join.get());
  // All of the staging memory is the stopped node's until the source leaves it.
  MeshProcess other(nodes.kvmd_b, "c", {nodes.mesh_a.as_peer()}, kOverTcp, Ucx({"--pool-size", "192M"}));
  nodes.CheckJoinsAll(other);
  nodes.mesh_b.Signal(SIGCONT);
}

#if defined(KVM_FAULT_POINTS)
TEST_CASE("Mesh UCX: a source that dies between two batches shortens the prefix", "[fault]") {
  TwoNodes nodes(kOverTcp, kOverTcp, Ucx());
  PublishAndFlush(*nodes.publisher, "p:32");
  PublishAndFlush(*nodes.publisher, "warm:1", 40);
  REQUIRE(JoinsEventually(*nodes.joiner, nodes.mesh_b, "warm:1", 1));
  TwoNodes::Fault(nodes.kvmd_a, "client_block_copied 20");
  const JoinOutcome joined = Join(*nodes.joiner, nodes.mesh_b, "p:32", 10s, "a");
  // Batches of eight: two were sent, and the third one was being copied.
  CHECK(joined.blocks == 16);
  REQUIRE(Eventually([&] { return !nodes.mesh_a.running(); }));
  const ImportCheck import = nodes.joiner->FindAndImport("p:32", 0);
  CHECK(import.valid == 16);
  CHECK(import.wrong == 0);
}
#endif
#endif
