// Two nodes on one machine whose blocks travel over UCX, or would if they could.
#include <filesystem>
#include <vector>

#include "tests/catch.h"
#include "tests/support/mesh/mesh_authority.h"
#include "tests/support/mesh/two_nodes.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::Eventually;
using test::ImportCheck;
using test::Join;
using test::JoinsEventually;
using test::KvmdProcess;
using test::LogOf;
using test::MeshAuthority;
using test::MeshProcess;
using test::PublishAndFlush;
using test::StatusOf;
using test::TwoNodes;

const std::vector<std::string> kOverTcp{"UCX_TLS=tcp,self"};
const std::vector<std::string> kUcx{"--transfer", "ucx"};

bool Contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Node b joins what node a has published.
void CheckJoins(TwoNodes& nodes, std::size_t blocks = 16) {
  const std::string prompt = "p:" + std::to_string(blocks);
  PublishAndFlush(*nodes.publisher, prompt);
  REQUIRE(JoinsEventually(*nodes.joiner, nodes.mesh_b, prompt, blocks));
  const ImportCheck import = nodes.joiner->FindAndImport(prompt, static_cast<std::uint32_t>(blocks));
  CHECK(import.valid == blocks);
  CHECK(import.wrong == 0);
}

}  // namespace

#if !defined(KVM_HAVE_UCX)
TEST_CASE("Mesh UCX: a node that was built without UCX says so, and its blocks travel over TCP", "[integration]") {
  TwoNodes nodes({}, {}, kUcx);
  CHECK(Contains(LogOf(nodes.kvmd_a), "built without UCX"));
  CHECK(StatusOf(nodes.mesh_a).transfer() == "tcp");
  CheckJoins(nodes);
}

TEST_CASE("Mesh UCX: two nodes over UCX", "[integration]") { KVM_SKIP("built without UCX (libucx-dev)"); }
#else
TEST_CASE("Mesh UCX: blocks travel over UCX, byte for byte, whatever moves what it offers", "[integration]") {
  for (const char* scheme : {"get_zcopy", "put_zcopy"}) {
    INFO(scheme);
    std::vector<std::string> environment = kOverTcp;
    environment.push_back(std::string("UCX_RNDV_SCHEME=") + scheme);
    TwoNodes nodes(environment, environment, kUcx);
    CHECK(StatusOf(nodes.mesh_a).transfer() == "ucx");
    CheckJoins(nodes);
    CHECK(StatusOf(nodes.mesh_a).ucx_sent_bytes() == 16 * 4096);
    CHECK(StatusOf(nodes.mesh_b).ucx_received_bytes() == 16 * 4096);
  }
}

TEST_CASE("Mesh UCX: blocks of several pieces travel over UCX, byte for byte", "[integration]") {
  TwoNodes nodes(kOverTcp, kOverTcp, {"--transfer", "ucx", "--pool-size", "40M", "--staging-size", "16M"}, 24, std::uint64_t{3} << 20);
  CheckJoins(nodes, 12);
  CHECK(StatusOf(nodes.mesh_a).ucx_sent_bytes() == (std::uint64_t{36} << 20));
}

TEST_CASE("Mesh UCX: with one node that has no UCX, blocks travel over TCP, in both directions", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a", {}, kOverTcp, kUcx);
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()});
  MeshProcess mesh_c(kvmd_a, "c", {mesh_b.as_peer()}, kOverTcp, kUcx);
  const auto worker_a = test::StartWorker({.socket = kvmd_a.socket(), .name = "a"});
  const auto worker_b = test::StartWorker({.socket = kvmd_b.socket(), .name = "b"});
  PublishAndFlush(*worker_a, "p:8");
  CHECK(JoinsEventually(*worker_b, mesh_b, "p:8", 8));
  PublishAndFlush(*worker_b, "q:8", 20);
  CHECK(JoinsEventually(*worker_a, mesh_c, "q:8", 8));
  CHECK(worker_a->FindAndImport("q:8", 30).wrong == 0);
  CHECK(StatusOf(mesh_a).ucx_sent_bytes() == 0);
  CHECK(StatusOf(mesh_c).ucx_received_bytes() == 0);
}

TEST_CASE("Mesh UCX: where UCX does not reach the peer, blocks travel over TCP, and the log says why", "[integration]") {
  // Its transport leads to the process itself only.
  TwoNodes nodes({"UCX_TLS=self"}, {"UCX_TLS=self"}, kUcx);
  CHECK(StatusOf(nodes.mesh_a).transfer() == "ucx");
  CheckJoins(nodes);
  CHECK(StatusOf(nodes.mesh_a).ucx_sent_bytes() == 0);
  CHECK(Contains(LogOf(nodes.kvmd_b), "event=ucx_avoided address=" + nodes.mesh_a.address() + " reason=\"UCX: "));
}

TEST_CASE("Mesh UCX: its own TCP is not used unless it is named", "[integration]") {
  TwoNodes nodes({}, {}, kUcx);
  CheckJoins(nodes);
  CHECK(StatusOf(nodes.mesh_a).ucx_sent_bytes() == 0);
}

TEST_CASE("Mesh UCX: where UCX does not start, the log says why, and blocks travel over TCP", "[integration]") {
  TwoNodes nodes({"UCX_TLS=none_such"}, kOverTcp, kUcx);
  CHECK(StatusOf(nodes.mesh_a).transfer() == "tcp");
  CHECK(Contains(LogOf(nodes.kvmd_a), "event=ucx_not_started reason="));
  CheckJoins(nodes);
}

TEST_CASE("Mesh UCX: a port that is taken, or is of another machine, is an error that names it", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess first(kvmd, "a", {}, kOverTcp, {"--transfer", "ucx", "--ucx-listen", "127.0.0.1:0"});
  CHECK(StatusOf(first).transfer() == "ucx");
  test::ChildProcess refused({test::MeshBinary(), "--node", "b", "--transfer", "ucx", "--ucx-listen", "10.9.8.7:1", "--socket",
                              kvmd.socket(), "--mesh-socket", kvmd.dir().path().string() + "/b.sock"},
                             kvmd.dir().path().string() + "/refused.log");
  const auto end = refused.Wait(20s);
  REQUIRE(end);
  CHECK(end->code == 1);
}

TEST_CASE("Mesh UCX: with certificates blocks travel over UCX only where that was allowed", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  const auto publisher = test::StartWorker({.socket = kvmd_a.socket(), .name = "publisher"});
  const auto joiner = test::StartWorker({.socket = kvmd_b.socket(), .name = "joiner"});
  PublishAndFlush(*publisher, "p:8");
  const MeshAuthority authority;
  const auto options = [&](const std::string& node, const std::vector<std::string>& more) {
    std::vector<std::string> out = authority.Options(publisher->client().domain(), node);
    out.insert(out.end(), more.begin(), more.end());
    return out;
  };
  SECTION("not said: an error") {
    std::vector<std::string> arguments{test::MeshBinary(), "--node", "a", "--socket", kvmd_a.socket()};
    for (const std::string& each : options("a", kUcx)) arguments.push_back(each);
    test::ChildProcess refused(arguments, kvmd_a.dir().path().string() + "/refused.log");
    const auto end = refused.Wait(20s);
    REQUIRE(end);
    CHECK(end->code == 1);
  }
  SECTION("auto, and not said: TCP") {
    MeshProcess mesh_a(kvmd_a, "a", {}, kOverTcp, options("a", {"--transfer", "auto"}));
    CHECK(StatusOf(mesh_a).transfer() == "tcp");
  }
  SECTION("said") {
    const std::vector<std::string> allowed{"--transfer", "ucx", "--ucx-unencrypted"};
    MeshProcess mesh_a(kvmd_a, "a", {}, kOverTcp, options("a", allowed));
    MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()}, kOverTcp, options("b", allowed));
    CHECK(JoinsEventually(*joiner, mesh_b, "p:8", 8));
    CHECK(joiner->FindAndImport("p:8", 10).wrong == 0);
    CHECK(StatusOf(mesh_b).ucx_received_bytes() == 8 * 4096);
    CHECK(StatusOf(mesh_b).encrypted());
  }
}

TEST_CASE("Mesh UCX: SIGTERM ends the process in an orderly way", "[integration]") {
  TwoNodes nodes(kOverTcp, kOverTcp, kUcx);
  CheckJoins(nodes);
  CHECK(nodes.mesh_a.Stop().clean());
  CHECK(nodes.mesh_b.Stop().clean());
}
#endif
