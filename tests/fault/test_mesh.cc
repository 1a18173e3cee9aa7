// What may happen to a join while it runs: blocks that are rewritten at their source, processes
// that die or stand still, peers that lie. The prefix is shorter then; no byte is wrong, and the
// node goes on.
#include <csignal>
#include <filesystem>
#include <functional>
#include <future>
#include <vector>

#include "tests/catch.h"
#include "tests/support/mesh/lying_peer.h"
#include "tests/support/mesh/mesh_process.h"
#include "tests/support/mesh/two_nodes.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::EndOf;
using test::Eventually;
using test::HonestBlock;
using test::HonestBlocks;
using test::ImportCheck;
using test::Join;
using test::JoinBy;
using test::JoinsEventually;
using test::KvmdProcess;
using test::LyingPeer;
using test::MeshProcess;
using test::PeerAnswer;
using test::ProcessState;
using test::PublishAndFlush;
using test::TwoNodes;
using test::Worker;

// The source's mesh process is stopped between its lookup and its copy, and the owner rewrites the
// blocks meanwhile. What a worker of the other node imports after the join.
ImportCheck JoinWhileRewritten(const std::vector<std::string>& environment) {
  TwoNodes nodes(environment);
  PublishAndFlush(*nodes.publisher, "warm:2", 40);
  REQUIRE(JoinsEventually(*nodes.joiner, nodes.mesh_b, "warm:2", 2));
  PublishAndFlush(*nodes.publisher, "p:8", 0);
  TwoNodes::Fault(nodes.kvmd_a, "client_import_begun 1 stop");
  auto join = std::async(std::launch::async, [&] { return Join(*nodes.joiner, nodes.mesh_b, "p:8", 30s, "a"); });
  REQUIRE(Eventually([&] { return ProcessState(nodes.mesh_a.pid()) == 'T'; }));
  // Reused for another prompt, as an engine does.
  PublishAndFlush(*nodes.publisher, "other:8", 0);
  nodes.mesh_a.Signal(SIGCONT);
  join.wait();
  return nodes.joiner->FindAndImport("p:8", 10);
}

}  // namespace

#if defined(KVM_FAULT_POINTS)
TEST_CASE("Mesh: blocks that are rewritten while their source copies them are not sent", "[fault]") {
  const ImportCheck import = JoinWhileRewritten({});
  CHECK(import.matched == 0);
  CHECK(import.wrong == 0);
}

TEST_CASE("Mesh: without the source's validation the same rewriting delivers wrong bytes", "[fault]") {
  const ImportCheck import = JoinWhileRewritten({"KVM_FAULT_SWITCH=import_without_validation"});
  CHECK(import.matched == 8);
  CHECK(import.wrong == 8);
}

TEST_CASE("Mesh: a source that dies in the middle of a fetch shortens the prefix, and its node goes on", "[fault]") {
  TwoNodes nodes;
  PublishAndFlush(*nodes.publisher, "p:32");
  PublishAndFlush(*nodes.publisher, "warm:1", 40);
  REQUIRE(JoinsEventually(*nodes.joiner, nodes.mesh_b, "warm:1", 1));
  TwoNodes::Fault(nodes.kvmd_a, "client_block_copied 20");
  const JoinOutcome joined = Join(*nodes.joiner, nodes.mesh_b, "p:32", 10s, "a");
  // Batches of eight: two were sent, and the third one was being copied.
  CHECK(joined.blocks == 16);
  CHECK_FALSE(joined.reason.empty());
  REQUIRE(Eventually([&] { return !nodes.mesh_a.running(); }));
  const ImportCheck import = nodes.joiner->FindAndImport("p:32", 0);
  CHECK(import.valid == joined.blocks);
  CHECK(import.wrong == 0);
  std::filesystem::remove(nodes.kvmd_a.dir().path().string() + "/fault");
  MeshProcess again(nodes.kvmd_a, "a");
  CHECK(again.running());
  CHECK(nodes.publisher->Find("p:32").size() == 32);
}

TEST_CASE("Mesh: a receiver that dies in the middle of a fetch ends the join, and what it published leaves the node", "[fault]") {
  TwoNodes nodes;
  PublishAndFlush(*nodes.publisher, "p:32");
  PublishAndFlush(*nodes.publisher, "warm:1", 40);
  REQUIRE(JoinsEventually(*nodes.joiner, nodes.mesh_b, "warm:1", 1));
  TwoNodes::Fault(nodes.kvmd_b, "client_block_readable 10");
  const JoinOutcome joined = Join(*nodes.joiner, nodes.mesh_b, "p:32", 10s);
  CHECK_FALSE(joined.reason.empty());
  REQUIRE(Eventually([&] { return !nodes.mesh_b.running(); }));
  CHECK(Eventually([&] { return nodes.joiner->Find("p:32").empty(); }));
  std::filesystem::remove(nodes.kvmd_b.dir().path().string() + "/fault");
  MeshProcess again(nodes.kvmd_b, "b", {nodes.mesh_a.as_peer()});
  REQUIRE(JoinsEventually(*nodes.joiner, again, "p:32", 32));
  const ImportCheck import = nodes.joiner->FindAndImport("p:32", 0);
  CHECK(import.valid == 32);
  CHECK(import.wrong == 0);
}
#endif

TEST_CASE("Mesh: a join of a source that stands still ends by its deadline, with what is here", "[fault]") {
  TwoNodes nodes;
  PublishAndFlush(*nodes.publisher, "p:8");
  PublishAndFlush(*nodes.joiner, "p:3");
  PublishAndFlush(*nodes.publisher, "warm:1", 40);
  REQUIRE(JoinsEventually(*nodes.joiner, nodes.mesh_b, "warm:1", 1));
  nodes.mesh_a.Signal(SIGSTOP);
  const JoinOutcome joined = Join(*nodes.joiner, nodes.mesh_b, "p:8", 500ms, "a");
  CHECK(joined.blocks == 3);
  CHECK_FALSE(joined.reason.empty());
  nodes.mesh_a.Signal(SIGCONT);
  CHECK(JoinsEventually(*nodes.joiner, nodes.mesh_b, "p:8", 8));
}

TEST_CASE("Mesh: a join ends by its deadline if the node's own mesh process stands still", "[fault]") {
  TwoNodes nodes;
  PublishAndFlush(*nodes.joiner, "p:3");
  nodes.mesh_b.Signal(SIGSTOP);
  const JoinOutcome joined = Join(*nodes.joiner, nodes.mesh_b, "p:8", 300ms);
  CHECK(joined.blocks == 3);
  CHECK_FALSE(joined.reason.empty());
  nodes.mesh_b.Signal(SIGCONT);
}

namespace {

// Joins from a peer that answers as `lie` says, and imports what the join has brought.
ImportCheck JoinFromLiar(LyingPeer::Lie lie, std::string& reason) {
  KvmdProcess kvmd;
  const auto joiner = test::StartWorker({.socket = kvmd.socket(), .name = "joiner"});
  LyingPeer liar("liar", joiner->client().domain(), joiner->Keys("p:8"), std::move(lie));
  MeshProcess mesh(kvmd, "b", {liar.as_peer()});
  JoinOutcome joined;
  REQUIRE(Eventually([&] {
    joined = Join(*joiner, mesh, "p:8");
    return liar.fetches() > 0;
  }));
  reason = joined.reason;
  CHECK(mesh.running());
  // The mesh process still answers.
  CHECK(joiner->client().JoinCache(joiner->region(), joiner->Keys("q:2"), JoinBy(mesh, 5s)).blocks == 0);
  return joiner->FindAndImport("p:8", 10);
}

std::vector<PeerAnswer> SecondIs(const kvmmesh::Fetch& fetch, const std::function<void(PeerAnswer&)>& change) {
  std::vector<PeerAnswer> out;
  for (std::uint32_t index = 0; index < 8; ++index) out.push_back(HonestBlock(fetch, index));
  change(out[1]);
  return out;
}

void CheckFirstBlockOnly(const ImportCheck& import) {
  CHECK(import.matched == 1);
  CHECK(import.wrong == 0);
}

}  // namespace

TEST_CASE("Mesh: a peer that sends what it says is a source, whatever program it is", "[fault]") {
  std::string reason;
  const ImportCheck import = JoinFromLiar([](const kvmmesh::Fetch& fetch) { return SecondIs(fetch, [](PeerAnswer&) {}); }, reason);
  CHECK(import.valid == 8);
  CHECK(import.wrong == 0);
}

TEST_CASE("Mesh: a block whose bytes do not have its checksum is not published, and ends the fetch", "[fault]") {
  std::string reason;
  CheckFirstBlockOnly(JoinFromLiar(
      [](const kvmmesh::Fetch& fetch) { return SecondIs(fetch, [](PeerAnswer& block) { block.payload[100] ^= 1; }); }, reason));
  CHECK(reason.find("checksum") != std::string::npos);
}

TEST_CASE("Mesh: a block of another length than asked for is not received", "[fault]") {
  std::string reason;
  CheckFirstBlockOnly(JoinFromLiar(
      [](const kvmmesh::Fetch& fetch) {
        return SecondIs(fetch, [](PeerAnswer& block) { block.payload.resize(block.payload.size() * 2, 'x'); });
      },
      reason));
  CHECK(reason.find("8192 bytes instead of 4096") != std::string::npos);
}

TEST_CASE("Mesh: a block under another key than asked for is not published", "[fault]") {
  std::string reason;
  CheckFirstBlockOnly(JoinFromLiar(
      [](const kvmmesh::Fetch& fetch) {
        return SecondIs(fetch, [](PeerAnswer& block) { block.message.mutable_blocks()->set_keys(std::string(16, 'k')); });
      },
      reason));
  CHECK(reason.find("another block") != std::string::npos);
}

TEST_CASE("Mesh: a block out of turn, and one of another request, end the fetch", "[fault]") {
  std::string reason;
  CheckFirstBlockOnly(JoinFromLiar(
      [](const kvmmesh::Fetch& fetch) { return SecondIs(fetch, [](PeerAnswer& block) { block.message.mutable_blocks()->set_index(7); }); },
      reason));
  CHECK(reason.find("out of turn") != std::string::npos);
  CheckFirstBlockOnly(JoinFromLiar(
      [](const kvmmesh::Fetch& fetch) {
        return SecondIs(fetch, [&](PeerAnswer& block) { block.message.mutable_blocks()->set_request(fetch.request() + 1); });
      },
      reason));
  CHECK(reason.find("something else") != std::string::npos);
}

TEST_CASE("Mesh: of blocks in one answer, those before one that does not have its checksum are published", "[fault]") {
  std::string reason;
  const ImportCheck import = JoinFromLiar(
      [](const kvmmesh::Fetch& fetch) {
        std::vector<PeerAnswer> out{HonestBlocks(fetch, 0, 2), HonestBlocks(fetch, 2, 6), EndOf(fetch)};
        out[1].payload[3 * fetch.shape().block_bytes() + 100] ^= 1;
        return out;
      },
      reason);
  CHECK(import.matched == 5);
  CHECK(import.wrong == 0);
  CHECK(reason.find("checksum") != std::string::npos);
}

TEST_CASE("Mesh: an answer whose blocks are not as many as it says, or too many, is not received", "[fault]") {
  const std::function<void(PeerAnswer&)> lies[] = {
      [](PeerAnswer& blocks) { blocks.payload.resize(blocks.payload.size() - 1); },
      [](PeerAnswer& blocks) { blocks.message.mutable_blocks()->clear_checksums(); },
      [](PeerAnswer& blocks) { blocks.message.mutable_blocks()->add_checksums(0); },
      [](PeerAnswer& blocks) { blocks.message.mutable_blocks()->mutable_keys()->resize(16 * 6); },
      [](PeerAnswer& blocks) {
        std::swap(blocks.message.mutable_blocks()->mutable_keys()->front(), blocks.message.mutable_blocks()->mutable_keys()->at(16));
      },
      [](PeerAnswer& blocks) { blocks.message.mutable_blocks()->set_bytes(blocks.payload.size()); },
  };
  for (const auto& lie : lies) {
    std::string reason;
    CheckFirstBlockOnly(JoinFromLiar(
        [&](const kvmmesh::Fetch& fetch) {
          std::vector<PeerAnswer> out{HonestBlock(fetch, 0), HonestBlocks(fetch, 1, 7), EndOf(fetch)};
          lie(out[1]);
          return out;
        },
        reason));
    CHECK(reason.find("liar: ") == 0);
  }
}

TEST_CASE("Mesh: a peer that claims every block and has none costs one question", "[fault]") {
  std::string reason;
  const ImportCheck import = JoinFromLiar(
      [](const kvmmesh::Fetch& fetch) {
        PeerAnswer end;
        end.message.mutable_end()->set_request(fetch.request());
        end.message.mutable_end()->set_reason(kvmmesh::FetchEnd::NOT_HERE);
        return std::vector<PeerAnswer>{end};
      },
      reason);
  CHECK(import.matched == 0);
  CHECK(reason == "liar: not there");
}

TEST_CASE("Mesh: a peer of another domain is not asked for blocks", "[fault]") {
  KvmdProcess kvmd;
  const auto joiner = test::StartWorker({.socket = kvmd.socket(), .name = "joiner"});
  LyingPeer foreign("foreign", "uid:4294967294", joiner->Keys("p:8"),
                    [](const kvmmesh::Fetch& fetch) { return SecondIs(fetch, [](PeerAnswer&) {}); });
  MeshProcess mesh(kvmd, "b", {foreign.as_peer()});
  const JoinOutcome joined = Join(*joiner, mesh, "p:8", 5s, "foreign");
  CHECK(joined.blocks == 0);
  CHECK(joined.reason.find("of domain uid:4294967294") != std::string::npos);
  CHECK(foreign.fetches() == 0);
}
