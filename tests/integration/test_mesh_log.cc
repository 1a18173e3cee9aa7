// What kvmd-mesh's log says of peers, of kvmd, and of those that it refuses: one line with the
// reason for each, however often it happens.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <filesystem>
#include <sstream>
#include <string>

#include "proto/mesh/mesh_frame.h"
#include "tests/catch.h"
#include "tests/support/mesh/mesh_authority.h"
#include "tests/support/mesh/two_nodes.h"
#include "tests/support/process/child_process.h"
#include "tests/support/process/read_file.h"
#include "tests/support/process/temp_dir.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::ChildProcess;
using test::Eventually;
using test::KvmdProcess;
using test::LogOf;
using test::MeshAuthority;
using test::MeshProcess;
using test::StatusOf;
using test::TwoNodes;
using test::Worker;

std::size_t Count(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

// The log's lines of one event.
std::string LinesOf(const KvmdProcess& kvmd, const std::string& event) {
  std::istringstream log(LogOf(kvmd));
  std::string lines;
  for (std::string line; std::getline(log, line);)
    if (line.starts_with("event=" + event + " ")) lines += line + "\n";
  return lines;
}

bool Says(const KvmdProcess& kvmd, const std::string& event) {
  return Eventually([&] { return !LinesOf(kvmd, event).empty(); }, 30s);
}

// Connects to a node as a peer that says this of itself, and waits until the node has closed the
// connection.
void Greet(const MeshProcess& mesh, std::uint32_t version, const std::string& domain) {
  kvmmesh::PeerMessage message;
  message.mutable_hello()->set_version(version);
  message.mutable_hello()->set_node("stranger");
  message.mutable_hello()->set_domain(domain);
  const std::string body = message.SerializeAsString();
  const mesh::MeshHeaderBytes header = mesh::EncodeMeshHeader({static_cast<std::uint32_t>(body.size()), 0});
  const UniqueFd socket = test::ConnectTo(mesh.address());
  const timeval patience{20, 0};
  REQUIRE(::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) == 0);
  REQUIRE(::send(socket.get(), header.data(), header.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(header.size()));
  REQUIRE(::send(socket.get(), body.data(), body.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(body.size()));
  char bytes[256];
  while (::recv(socket.get(), bytes, sizeof(bytes), 0) > 0) {
  }
}

}  // namespace

TEST_CASE("Mesh log: a peer that is silent is told once, with the reason, and so is that it answers again", "[integration]") {
  TwoNodes nodes;
  REQUIRE(Eventually([&] { return StatusOf(nodes.mesh_b).peers(0).fresh(); }));
  CHECK(LinesOf(nodes.kvmd_b, "peer_silent").empty());
  CHECK(LinesOf(nodes.kvmd_b, "peer_answers").empty());
  const std::string address = nodes.mesh_a.address();
  nodes.mesh_a.Kill();
  REQUIRE(Says(nodes.kvmd_b, "peer_silent"));
  const std::uint64_t failures = StatusOf(nodes.mesh_b).peers(0).failures();
  REQUIRE(Eventually([&] { return StatusOf(nodes.mesh_b).peers(0).failures() > failures; }, 30s));
  const std::string silent = LinesOf(nodes.kvmd_b, "peer_silent");
  INFO(silent);
  CHECK(Count(silent, "\n") == 1);
  CHECK(silent.find("node=a address=" + address + " reason=\"") != std::string::npos);
  CHECK(silent.find("connect to " + address) != std::string::npos);
  MeshProcess again(nodes.kvmd_a, "a", {}, {}, {"--listen", address});
  REQUIRE(Says(nodes.kvmd_b, "peer_answers"));
  CHECK(LinesOf(nodes.kvmd_b, "peer_answers") == "event=peer_answers node=a address=" + address + "\n");
}

TEST_CASE("Mesh log: certificates that do not fit are told at both ends", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  const auto worker = test::StartWorker({.socket = kvmd_a.socket(), .name = "a"});
  const std::string domain = worker->client().domain();
  const MeshAuthority authority, other;
  const MeshProcess mesh_a(kvmd_a, "a", {}, {}, authority.Options(domain, "a"));
  const MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()}, {}, other.Options(domain, "b", authority));
  REQUIRE(Says(kvmd_a, "peer_refused"));
  REQUIRE(Says(kvmd_b, "peer_silent"));
  const std::string refused = LinesOf(kvmd_a, "peer_refused");
  INFO(refused);
  CHECK(refused.find("from=127.0.0.1:") != std::string::npos);
  CHECK(refused.find("TLS handshake: ") != std::string::npos);
  CHECK(refused.find("certificate") != std::string::npos);
}

TEST_CASE("Mesh log: peers of another version or domain are told with both, and a thousand of them with one line", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = test::StartWorker({.socket = kvmd.socket(), .name = "a"});
  const std::string domain = worker->client().domain();
  {
    const MeshProcess mesh(kvmd, "a");
    REQUIRE(Says(kvmd, "kvmd_connected"));
    REQUIRE(Eventually([&] { return StatusOf(mesh).domain() == domain; }));
    for (int i = 0; i < 50; ++i) Greet(mesh, mesh::kMeshVersion, "uid:1\nevent=peer_refused x");
    REQUIRE(Says(kvmd, "peer_refused"));
    const std::string refused = LinesOf(kvmd, "peer_refused");
    INFO(refused);
    // One in ten seconds, and a busy machine may need more for these.
    CHECK(Count(refused, "\n") <= 6);
    CHECK(refused.find("node stranger is of domain uid:1\\x0aevent=peer_refused x, this one of " + domain) != std::string::npos);
    // What a port scan does: no line.
    const std::size_t before = Count(LogOf(kvmd), "\n");
    for (int i = 0; i < 20; ++i) static_cast<void>(test::ConnectTo(mesh.address()));
    CHECK(StatusOf(mesh).domain() == domain);
    CHECK(Count(LogOf(kvmd), "\n") == before);
  }
  const MeshProcess mesh(kvmd, "b");
  REQUIRE(Eventually([&] { return StatusOf(mesh).domain() == domain; }));
  Greet(mesh, mesh::kMeshVersion + 7, domain);
  const std::string version = "node stranger has version " + std::to_string(mesh::kMeshVersion + 7) + " of the protocol, this one " +
                              std::to_string(mesh::kMeshVersion);
  CHECK(Eventually([&] { return LinesOf(kvmd, "peer_refused").find(version) != std::string::npos; }));
}

TEST_CASE("Mesh log: that kvmd has gone, and is there again, is one line each", "[integration]") {
  KvmdProcess kvmd;
  const MeshProcess mesh(kvmd, "a", {"b=127.0.0.1:1"});
  REQUIRE(Says(kvmd, "kvmd_connected"));
  CHECK(LinesOf(kvmd, "kvmd_connected") == "event=kvmd_connected domain=" + StatusOf(mesh).domain() + "\n");
  kvmd.Kill();
  REQUIRE(Says(kvmd, "kvmd_lost"));
  kvmd.Start();
  REQUIRE(Eventually([&] { return Count(LinesOf(kvmd, "kvmd_connected"), "\n") == 2; }, 30s));
  const std::string lost = LinesOf(kvmd, "kvmd_lost");
  INFO(lost);
  CHECK(Count(lost, "\n") == 1);
  CHECK(lost.find("reason=\"") != std::string::npos);
}

TEST_CASE("Mesh log: blocks that are larger than their pool are told, at either end", "[integration]") {
  for (const char* option : {"--staging-size", "--pool-size"}) {
    INFO(option);
    TwoNodes nodes({}, {}, {option, "2K"});
    test::PublishAndFlush(*nodes.publisher, "p:4");
    const KvmdProcess& lacks = std::string(option) == "--staging-size" ? nodes.kvmd_a : nodes.kvmd_b;
    REQUIRE(Eventually(
        [&] {
          CHECK(test::Join(*nodes.joiner, nodes.mesh_b, "p:4").blocks == 0);
          return !LinesOf(lacks, "pool_not_made").empty();
        },
        30s));
    const std::string said = LinesOf(lacks, "pool_not_made");
    INFO(said);
    CHECK(Count(said, "\n") == 1);
    CHECK(said.find(option + std::string(": 2048 bytes hold no block of 4096")) != std::string::npos);
  }
}

TEST_CASE("Mesh log: a log without a reader stops no service", "[integration]") {
  KvmdProcess kvmd;
  const std::string log = kvmd.dir() / "mesh.log";
  REQUIRE(::mkfifo(log.c_str(), 0600) == 0);
  const UniqueFd reader(::open(log.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  REQUIRE(reader);
  const MeshProcess mesh(kvmd, "a");
  REQUIRE(Eventually([&] { return !StatusOf(mesh).domain().empty(); }, 30s));
  {
    const UniqueFd writer(::open(log.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
    REQUIRE(writer);
    for (const std::string page(4096, 'f'); ::write(writer.get(), page.data(), page.size()) > 0;) {
    }
  }
  Greet(mesh, mesh::kMeshVersion + 7, StatusOf(mesh).domain());
  CHECK(StatusOf(mesh).node() == "a");
  std::string said;
  CHECK(Eventually([&] {
    char bytes[8192];
    for (ssize_t got; (got = ::read(reader.get(), bytes, sizeof(bytes))) > 0;) said.append(bytes, static_cast<std::size_t>(got));
    return said.find("event=peer_refused ") != said.npos;
  }));
}

TEST_CASE("Mesh log: lines for the journal begin with their priority", "[integration]") {
  const test::TempDir dir;
  const std::string mesh =
      test::MeshBinary() + " --node a --listen 127.0.0.1:0 --socket " + (dir / "none") + " --mesh-socket " + (dir / "none/mesh.sock");
  const auto said = [&](const std::string& stream) {
    const std::string file = dir / "log";
    ChildProcess process({"/bin/sh", "-c", "JOURNAL_STREAM=" + stream + " exec " + mesh}, file);
    REQUIRE(process.Wait(60s));
    const std::string text = test::ReadFile(file);
    std::filesystem::remove(file);
    return text;
  };
  CHECK(said("$(stat -Lc %d:%i /proc/self/fd/2)").starts_with("<3>event=start_failed "));
  CHECK(said("1:2").starts_with("event=start_failed "));
}
