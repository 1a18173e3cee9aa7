// The sockets that the service manager passes to kvmd-mesh: who may connect there learns the counts
// of metrics, reaches nothing else, and takes nothing from workers.
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "proto/mesh/mesh_request.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/mesh/two_nodes.h"
#include "tests/support/process/lingering_socket.h"
#include "tests/support/process/socket_pair.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::Eventually;
using test::KvmdProcess;
using test::MeshProcess;
using test::ReadFile;
using test::Sandbox;
using test::StatusOf;
using test::StoppedProcess;
namespace fs = std::filesystem;

// A socket that a child process may inherit.
UniqueFd Listening(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE(path.size() < sizeof(address.sun_path));
  std::memcpy(address.sun_path, path.c_str(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM, 0));
  REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  REQUIRE(::listen(socket.get(), 4096) == 0);
  return socket;
}

// The part of a command line that passes `fd`, as a service manager does, to the program behind it;
// `first`: a command before.
std::vector<std::string> Passing(int fd, const std::string& first = "true") {
  const std::string number = std::to_string(fd);
  return {"LISTEN_FDS=1", "bash", "-c", first + "; LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&" + number + (fd == 3 ? "" : " " + number + "<&-")};
}

// A kvmd-mesh that was passed a socket in a directory of its own.
struct PassedMesh {
  explicit PassedMesh(const std::vector<std::string>& peers = {}, const std::vector<std::string>& options = {},
                      const std::string& first = "true")
      : mesh(kvmd, "a", peers, Passing(listener.get(), first), options) {}

  Result<kvmmesh::LocalMessage> Ask(const kvmmesh::LocalMessage& request) const {
    return mesh::AskMesh(path, request, std::chrono::steady_clock::now() + 20s);
  }
  Result<kvmmesh::LocalMessage> AskStatus() const {
    kvmmesh::LocalMessage request;
    request.mutable_status_query();
    return Ask(request);
  }

  KvmdProcess kvmd;
  const std::string directory = [this] {
    fs::create_directory(kvmd.dir() / "status");
    return kvmd.dir() / "status";
  }();
  const std::string path = directory + "/1000.sock";
  UniqueFd listener = Listening(path);
  MeshProcess mesh;
};

// The value of a metric's series whose labels contain `labels`; empty: there is none.
std::string Value(const std::string& page, const std::string& metric, const std::string& labels) {
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(metric + "{") && line.find(labels) != line.npos) return line.substr(line.rfind(' ') + 1);
  }
  return "";
}

}  // namespace

TEST_CASE("Mesh status: a passed socket answers with counts and names, and no address, path or reason", "[integration]") {
  const test::TempDir disk;
  PassedMesh passed({"b=127.0.0.1:9"}, {"--disk-path", disk / "cache", "--disk-bytes", "64M"});
  kvmmesh::Status all;
  REQUIRE(Eventually([&] {
    all = StatusOf(passed.mesh);
    return all.peers_size() == 1 && !all.peers(0).last_error().empty() && all.disk().state() == "on";
  }));
  const std::string known = all.SerializeAsString();
  for (const std::string& text : {std::string("127.0.0.1"), disk / "cache", all.peers(0).last_error()}) {
    INFO(text);
    CHECK(known.find(text) != known.npos);
    const auto answer = passed.AskStatus();
    KVM_REQUIRE_OK(answer);
    REQUIRE(answer->has_status());
    CHECK(answer->status().SerializeAsString().find(text) == std::string::npos);
  }
  const kvmmesh::Status told = passed.AskStatus()->status();
  CHECK(told.node() == "a");
  CHECK(told.domain() == all.domain());
  REQUIRE(told.peers_size() == 1);
  CHECK(told.peers(0).node() == "b");
  CHECK(told.disk().state() == "on");
  CHECK(told.disk().limit_bytes() == all.disk().limit_bytes());
}

TEST_CASE("Mesh status: any other message ends the connection to a passed socket", "[integration]") {
  PassedMesh passed;
  kvmmesh::LocalMessage join, find, explain, describe;
  join.mutable_join();
  find.mutable_find_query()->set_keys(std::string(16, 'k'));
  explain.mutable_explain_query();
  describe.mutable_describe();
  for (const kvmmesh::LocalMessage& request : {join, find, explain, describe}) {
    KVM_CHECK_ERROR(passed.Ask(request), Errc::kUnavailable, "closed the connection");
  }
  KVM_REQUIRE_OK(passed.AskStatus());
  CHECK(StatusOf(passed.mesh).joins() == 0);
}

// Where StatusServer has no limit, kvmd-mesh runs out of descriptors, and answers no worker; where
// its connections wait with those of workers, the worker's is closed: both seen.
TEST_CASE("Mesh status: connections to a passed socket that say nothing take nothing from workers", "[integration]") {
  PassedMesh passed({}, {"--max-connections", "64"}, "ulimit -n 100");
  const UniqueFd worker = test::ConnectToPath(passed.mesh.socket());
  CHECK(StatusOf(passed.mesh).node() == "a");  // by now the worker's is accepted
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 200; ++i) {
    silent.push_back(test::ConnectToPath(passed.path));
    if (i % 2 == 0) static_cast<void>(::send(silent.back().get(), "KV", 2, MSG_NOSIGNAL));
  }
  // Behind them in the socket's queue, so all of them have been accepted afterwards.
  const auto told = passed.AskStatus();
  CHECK(StatusOf(passed.mesh).node() == "a");
  char byte = 0;
  CHECK(::recv(worker.get(), &byte, 1, MSG_DONTWAIT) == -1);  // 0: closed
  CHECK(errno == EAGAIN);
  KVM_REQUIRE_OK(told);
}

// Where StatusServer takes connections without BytesOnlySocket, kvmd-mesh waits: seen.
TEST_CASE("Mesh status: a socket whose close waits for somebody, sent to a passed socket, stops no client", "[integration]") {
  PassedMesh passed;
  test::LingeringSocket lingering;
  StoppedProcess stopped(passed.mesh.pid());
  {
    const UniqueFd hostile = test::ConnectToPath(passed.path);
    REQUIRE(test::SendRaw(hostile.get(), "K", {lingering.socket.get()}) == 1);
    lingering.socket.Reset();
  }
  stopped.Resume();
  for (int i = 0; i < 3; ++i) KVM_REQUIRE_OK(passed.AskStatus());
  CHECK(StatusOf(passed.mesh).node() == "a");
}

TEST_CASE("Mesh status: the file of a passed socket stays when kvmd-mesh ends", "[integration]") {
  PassedMesh passed;
  KVM_REQUIRE_OK(passed.AskStatus());
  CHECK(passed.mesh.Stop().clean());
  CHECK(fs::exists(passed.path));
  CHECK_FALSE(fs::exists(passed.mesh.socket()));
}

TEST_CASE("Mesh status: a descriptor that is no Unix socket that listens is refused", "[integration]") {
  const Sandbox sandbox;
  const std::string start = "LISTEN_FDS=1 bash -c 'LISTEN_PID=$$ exec \"$0\" \"$@\"'";
  const auto refused = sandbox.RunBeside(
      "kvmd-mesh", "--node a --mesh-socket " + (sandbox.path() / "mesh.sock").string() + " --listen 127.0.0.1:0 3</dev/null", start);
  CHECK(refused.code == 1);
  INFO(refused.err);
  CHECK(refused.err.find("descriptor 3 is no Unix socket that listens") != std::string::npos);
}

// Where all share a deadline and are asked one after the other, the one that hangs leaves no time
// for the next: seen.
TEST_CASE("Mesh status: the exporter asks each socket of a directory, and one that hangs keeps none from answering", "[integration]") {
  PassedMesh passed;
  const std::string hanging = passed.directory + "/0.sock";
  const UniqueFd unanswered = Listening(hanging);
  std::ofstream(passed.directory + "/notes") << "no socket";
  fs::create_symlink(passed.path, passed.directory + "/2000.sock");
  const Sandbox sandbox;
  const std::string exporter = "--socket " + passed.kvmd.socket() + " --timeout-ms 5000 exporter --once --mesh-sockets-in ";
  const auto scraped = sandbox.Run(exporter + passed.directory);
  if (scraped.err.find("exporter") != std::string::npos && scraped.code != 0) KVM_SKIP("kvctl has no exporter in this build");
  INFO(scraped.out << scraped.err);
  REQUIRE(scraped.code == 0);
  CHECK(Value(scraped.out, "kvmd_mesh_up", "socket=\"" + passed.path + "\"") == "1");
  CHECK(Value(scraped.out, "kvmd_mesh_up", "socket=\"" + hanging + "\"") == "0");
  CHECK(Value(scraped.out, "kvmd_mesh_blocks", "node=\"a\"") == "0");
  CHECK(Value(scraped.out, "kvmd_mesh_up", "/notes").empty());
  CHECK(Value(scraped.out, "kvmd_mesh_up", "/2000.sock").empty());
  const auto missing = sandbox.Run(exporter + passed.directory + "/nowhere");
  CHECK(missing.code == 0);
  CHECK(missing.err.empty());
  CHECK(Value(missing.out, "kvmd_mesh_up", "").empty());
}
