// Two nodes with certificates: which peers are let in, and which are not.
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/write.hpp>
#include <csignal>
#include <filesystem>
#include <vector>

#include "client/mesh/transfer/tcp_transfer.h"
#include "client/mesh/transfer/tls_channel.h"
#include "proto/base/unique_fd.h"
#include "proto/mesh/mesh_frame.h"
#include "proto/mesh/mesh_request.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/mesh/lying_peer.h"
#include "tests/support/mesh/mesh_authority.h"
#include "tests/support/mesh/mesh_process.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::Eventually;
using test::JoinBy;
using test::KvmdProcess;
using test::MeshAuthority;
using test::MeshProcess;
using test::StatusOf;
using test::Worker;

// A node with a worker, and a mesh process that is started later.
struct Node {
  explicit Node(const std::string& name) : worker(test::StartWorker({.socket = kvmd.socket(), .name = name})) {}
  std::string domain() const { return worker->client().domain(); }

  KvmdProcess kvmd;
  std::unique_ptr<Worker> worker;
};

JoinOutcome Join(Worker& worker, const MeshProcess& mesh, const std::string& hint) {
  JoinOptions options = JoinBy(mesh, 20s);
  options.source_hint = hint;
  return worker.client().JoinCache(worker.region(), worker.Keys("p:8"), options);
}

// Node a with these options of TLS, node b with those; b joins what a has. Returns why b got no
// blocks; empty: it got all.
std::string JoinBetween(const std::vector<std::string>& options_a, const std::vector<std::string>& options_b, Node& a, Node& b,
                        const std::string& name_of_a = "a") {
  a.worker->Publish("p:8", 0);
  KVM_REQUIRE_OK(a.worker->Flush());
  MeshProcess mesh_a(a.kvmd, "a", {}, {}, options_a);
  MeshProcess mesh_b(b.kvmd, "b", {name_of_a + "=" + mesh_a.address()}, {}, options_b);
  JoinOutcome joined;
  // What was refused stays refused: several tries, and none of them brings anything.
  int refused = 0;
  Eventually([&] {
    joined = Join(*b.worker, mesh_b, name_of_a);
    if (joined.reason.find("not there") == std::string::npos) ++refused;  // a has not looked yet
    return joined.blocks == 8 || refused == 3;
  });
  CHECK(mesh_a.running());
  CHECK(mesh_b.running());
  CHECK((joined.blocks == 8 || joined.blocks == 0));
  if (joined.blocks == 8) CHECK(b.worker->FindAndImport("p:8", 10).wrong == 0);
  if (joined.blocks == 0) CHECK(StatusOf(mesh_a).served_blocks() == 0);
  return joined.blocks == 8 ? "" : joined.reason;
}

bool Contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Whether the other end closes the connection, and says nothing that is not an alert before.
bool IsClosed(const UniqueFd& socket) {
  for (;;) {
    pollfd waiting{socket.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 30'000) <= 0) return false;
    char bytes[4096];
    const ssize_t got = ::recv(socket.get(), bytes, sizeof(bytes), 0);
    if (got <= 0) return true;
  }
}

}  // namespace

TEST_CASE("Mesh TLS: nodes with certificates of one authority and one domain join", "[integration]") {
  Node a("a"), b("b");
  const MeshAuthority authority;
  CHECK(JoinBetween(authority.Options(a.domain(), "a"), authority.Options(b.domain(), "b"), a, b).empty());
}

TEST_CASE("Mesh TLS: a source whose certificate is of another authority is not asked", "[integration]") {
  Node a("a"), b("b");
  const MeshAuthority authority, other;
  const std::string reason = JoinBetween(other.Options(a.domain(), "a", authority), authority.Options(b.domain(), "b"), a, b);
  INFO(reason);
  CHECK(Contains(reason, "TLS handshake"));
  CHECK(Contains(reason, "certificate"));
}

TEST_CASE("Mesh TLS: a peer whose certificate is of another authority gets nothing", "[integration]") {
  Node a("a"), b("b");
  const MeshAuthority authority, other;
  const std::string reason = JoinBetween(authority.Options(a.domain(), "a"), other.Options(b.domain(), "b", authority), a, b);
  INFO(reason);
  CHECK_FALSE(reason.empty());
}

TEST_CASE("Mesh TLS: certificates of another domain are refused, at either end", "[integration]") {
  Node a("a"), b("b");
  const MeshAuthority authority;
  const std::string source_foreign = JoinBetween(authority.Options("uid:4294967294", "a"), authority.Options(b.domain(), "b"), a, b);
  INFO(source_foreign);
  CHECK(Contains(source_foreign, "the peer's certificate is not of node a of domain " + b.domain()));
  const std::string peer_foreign = JoinBetween(authority.Options(a.domain(), "a"), authority.Options("uid:4294967294", "b"), a, b);
  INFO(peer_foreign);
  CHECK_FALSE(peer_foreign.empty());
}

TEST_CASE("Mesh TLS: a node that answers at another node's address is not asked", "[integration]") {
  Node a("a"), b("b");
  const MeshAuthority authority;
  const std::string reason = JoinBetween(authority.Options(a.domain(), "a"), authority.Options(b.domain(), "b"), a, b, "c");
  INFO(reason);
  CHECK(Contains(reason, "not of node c"));
}

TEST_CASE("Mesh TLS: an expired or foreign certificate of a node's own is an error at its start", "[integration]") {
  Node a("a");
  const MeshAuthority authority;
  const auto code = [&](const std::vector<std::string>& tls, const std::string& node) {
    std::vector<std::string> arguments{test::MeshBinary(), "--node",        node,
                                       "--socket",         a.kvmd.socket(), "--listen",
                                       "127.0.0.1:0",      "--mesh-socket", a.kvmd.dir().path().string() + "/mesh.sock"};
    arguments.insert(arguments.end(), tls.begin(), tls.end());
    test::ChildProcess process(arguments, a.kvmd.dir().path().string() + "/refused.log");
    const auto end = process.Wait(20s);
    return end ? end->code : -1;
  };
  CHECK(code(authority.Options(a.domain(), "a", -60), "a") == 1);
  CHECK(code(authority.Options(a.domain(), "a"), "b") == 1);
  std::vector<std::string> other_key = authority.Options(a.domain(), "a");
  static_cast<void>(authority.Options(a.domain(), "b"));
  other_key[5] = authority.key_file("b");
  CHECK(code(other_key, "a") == 1);
}

TEST_CASE("Mesh TLS: a certificate that expires while the process runs ends what was opened with it", "[integration]") {
  Node a("a"), b("b");
  const MeshAuthority authority;
  a.worker->Publish("p:8", 0);
  KVM_REQUIRE_OK(a.worker->Flush());
  // On a busy machine it takes some seconds to start, and connections fail in other ways, too.
  MeshProcess mesh_a(a.kvmd, "a", {}, {}, authority.Options(a.domain(), "a", 15));
  MeshProcess mesh_b(b.kvmd, "b", {mesh_a.as_peer()}, {}, authority.Options(b.domain(), "b"));
  bool opened = false;
  CHECK(Eventually(
      [&] {
        const kvmmesh::Status status = StatusOf(mesh_b);
        opened = opened || status.peers(0).fresh();
        return Contains(status.peers(0).last_error(), "expired");
      },
      90s));
  CHECK(opened);
  CHECK(Eventually([&] { return !StatusOf(mesh_b).peers(0).fresh(); }));
  CHECK(Join(*b.worker, mesh_b, "a").blocks == 0);
}

TEST_CASE("Mesh TLS: SIGHUP reads the certificates again, and connections are opened anew", "[integration]") {
  Node a("a"), b("b");
  const MeshAuthority authority;
  a.worker->Publish("p:8", 0);
  KVM_REQUIRE_OK(a.worker->Flush());
  MeshProcess mesh_a(a.kvmd, "a", {}, {}, authority.Options(a.domain(), "a"));
  MeshProcess mesh_b(b.kvmd, "b", {mesh_a.as_peer()}, {}, authority.Options(b.domain(), "b"));
  REQUIRE(Eventually([&] { return StatusOf(mesh_b).peers(0).fresh(); }));
  // The new certificate is of another domain, so connections that are opened anew are refused.
  authority.Issue("uid:4294967294", "a");
  mesh_a.Signal(SIGHUP);
  CHECK(Eventually([&] { return Contains(StatusOf(mesh_b).peers(0).last_error(), "not of node a"); }));
  authority.Issue(a.domain(), "a");
  mesh_a.Signal(SIGHUP);
  CHECK(Eventually([&] { return Join(*b.worker, mesh_b, "a").blocks == 8; }, 30s));
  // A file that is no certificate changes nothing.
  std::remove(authority.certificate_file("a").c_str());
  mesh_a.Signal(SIGHUP);
  CHECK(Eventually([&] { return StatusOf(mesh_b).peers(0).fresh(); }));
  CHECK(mesh_a.running());
}

TEST_CASE("Mesh TLS: a node whose certificate was revoked gets nothing and is not asked, from the next SIGHUP on", "[integration]") {
  Node a("a"), b("b");
  MeshAuthority authority;
  authority.Revoke();
  const auto with_list = [&](std::vector<std::string> options) {
    options.insert(options.end(), {"--tls-crl", authority.list_file()});
    return options;
  };
  a.worker->Publish("p:8", 0);
  KVM_REQUIRE_OK(a.worker->Flush());
  MeshProcess mesh_a(a.kvmd, "a", {}, {}, with_list(authority.Options(a.domain(), "a")));
  MeshProcess mesh_b(b.kvmd, "b", {mesh_a.as_peer()}, {}, authority.Options(b.domain(), "b"));
  REQUIRE(Eventually([&] { return StatusOf(mesh_b).peers(0).fresh(); }));
  authority.Revoke("b");
  mesh_a.Signal(SIGHUP);
  CHECK(Eventually([&] { return Contains(StatusOf(mesh_b).peers(0).last_error(), "revoked"); }));
  CHECK(Join(*b.worker, mesh_b, "a").blocks == 0);
  CHECK(StatusOf(mesh_a).served_blocks() == 0);
  // The other direction: a node with the list does not ask one whose certificate is in it.
  authority.Revoke("a");
  MeshProcess asking(b.kvmd, "c", {mesh_a.as_peer()}, {}, with_list(authority.Options(b.domain(), "c")));
  CHECK(Eventually([&] { return Contains(StatusOf(asking).peers(0).last_error(), "revoked"); }));
}

TEST_CASE("Mesh TLS: a revocation list that is damaged, foreign or out of date lets no peer in unchecked", "[integration]") {
  Node a("a"), b("b");
  MeshAuthority authority, other;
  authority.Revoke();
  other.Revoke();
  std::vector<std::string> options = authority.Options(a.domain(), "a");
  options.insert(options.end(), {"--tls-crl", other.list_file()});
  // A list of another authority says nothing of this one's certificates.
  CHECK_FALSE(JoinBetween(options, authority.Options(b.domain(), "b"), a, b).empty());
  options.back() = authority.list_file();
  CHECK(JoinBetween(options, authority.Options(b.domain(), "b"), a, b).empty());
  const auto refusal = [&] { return mesh::TlsIdentity::Load({options[1], options[3], options[5], options.back()}, "a"); };
  authority.Revoke("", -60);
  KVM_CHECK_ERROR(refusal(), Errc::kInvalidArgument, "out of date");
  options.back() = authority.key_file("a");
  KVM_CHECK_ERROR(refusal(), Errc::kInvalidArgument, "no revocation list");
  options.back() = "/nonexistent";
  KVM_CHECK_ERROR(refusal(), Errc::kInvalidArgument, "--tls-crl");
}

TEST_CASE("Mesh TLS: a peer without TLS gets nothing from a node with it, and the other way", "[integration]") {
  Node a("a"), b("b");
  const MeshAuthority authority;
  CHECK_FALSE(JoinBetween(authority.Options(a.domain(), "a"), {}, a, b).empty());
  const std::string reason = JoinBetween({}, authority.Options(b.domain(), "b"), a, b);
  INFO(reason);
  CHECK(Contains(reason, "TLS handshake"));
}

TEST_CASE("Mesh TLS: a process without a certificate gets no answer, and neither does an older TLS", "[integration]") {
  namespace asio = boost::asio;
  Node a("a");
  const MeshAuthority authority;
  MeshProcess mesh_a(a.kvmd, "a", {}, {}, authority.Options(a.domain(), "a"));
  kvmmesh::PeerMessage hello;
  hello.mutable_hello()->set_version(mesh::kMeshVersion);
  hello.mutable_hello()->set_node("b");
  hello.mutable_hello()->set_domain(a.domain());
  const std::string body = hello.SerializeAsString();
  const mesh::MeshHeaderBytes header = mesh::EncodeMeshHeader({static_cast<std::uint32_t>(body.size()), 0});
  // Whether a hello was answered.
  const auto answered = [&](asio::ssl::context& context) {
    asio::io_context io;
    mesh::TlsStream stream(io, context);
    stream.lowest_layer().connect(*mesh::ParseAddress(mesh_a.address()));
    boost::system::error_code error;
    stream.handshake(asio::ssl::stream_base::client, error);
    // The client learns of the refusal of TLS 1.3 at its first read.
    if (!error) asio::write(stream, std::array<asio::const_buffer, 2>{asio::buffer(header), asio::buffer(body)}, error);
    char byte = 0;
    return !error && stream.read_some(asio::buffer(&byte, 1), error) > 0;
  };
  asio::ssl::context context(asio::ssl::context::tlsv13_client);
  context.load_verify_file(authority.authority_file());
  context.set_verify_mode(asio::ssl::verify_peer);
  CHECK_FALSE(answered(context));
  authority.Issue(a.domain(), "b");
  context.use_certificate_chain_file(authority.certificate_file("b"));
  context.use_private_key_file(authority.key_file("b"), asio::ssl::context::pem);
  CHECK(answered(context));
  asio::ssl::context older(asio::ssl::context::tlsv12_client);
  older.use_certificate_chain_file(authority.certificate_file("b"));
  older.use_private_key_file(authority.key_file("b"), asio::ssl::context::pem);
  CHECK_FALSE(answered(older));
  CHECK(mesh_a.running());
}

TEST_CASE("Mesh TLS: handshakes that stall or are cut off end, and keep no peer out", "[integration]") {
  Node a("a"), b("b");
  const MeshAuthority authority;
  a.worker->Publish("p:8", 0);
  KVM_REQUIRE_OK(a.worker->Flush());
  std::vector<std::string> options = authority.Options(a.domain(), "a");
  options.insert(options.end(), {"--max-connections", "16"});
  MeshProcess mesh_a(a.kvmd, "a", {}, {}, options);
  // A record of a handshake of which 500 bytes were announced and 3 came.
  const std::string begun("\x16\x03\x01\x01\xf4\x01\x00\x01", 8);
  std::vector<UniqueFd> stalled;
  for (int i = 0; i < 40; ++i) {
    stalled.push_back(test::ConnectTo(mesh_a.address()));
    static_cast<void>(::send(stalled.back().get(), begun.data(), begun.size(), MSG_NOSIGNAL));
  }
  {
    const UniqueFd cut = test::ConnectTo(mesh_a.address());
    static_cast<void>(::send(cut.get(), begun.data(), begun.size(), MSG_NOSIGNAL));
  }
  MeshProcess mesh_b(b.kvmd, "b", {mesh_a.as_peer()}, {}, authority.Options(b.domain(), "b"));
  CHECK(Eventually([&] { return Join(*b.worker, mesh_b, "a").blocks == 8; }, 30s));
  for (const UniqueFd& socket : stalled) CHECK(IsClosed(socket));
  CHECK(mesh_a.running());
}

TEST_CASE("Mesh TLS: a source that accepts and never answers the handshake is left at the connection's own deadline", "[integration]") {
  Node b("b");
  const MeshAuthority authority;
  const UniqueFd silent(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  REQUIRE(::bind(silent.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0);
  REQUIRE(::listen(silent.get(), 16) == 0);
  REQUIRE(::getsockname(silent.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  MeshProcess mesh_b(b.kvmd, "b", {"a=127.0.0.1:" + std::to_string(ntohs(address.sin_port))}, {}, authority.Options(b.domain(), "b"));
  const JoinOutcome joined = Join(*b.worker, mesh_b, "a");
  CHECK(joined.blocks == 0);
  CHECK(Contains(joined.reason, "TLS handshake: too late"));
}

TEST_CASE("Mesh TLS: kvctl mesh makes certificates that kvmd-mesh takes, with keys of the owner only", "[integration]") {
  Node a("a"), b("b");
  const test::TempDir dir;
  const auto kvctl = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {test::Kvctl(), "mesh"});
    test::ChildProcess process(arguments, dir / "kvctl.log");
    const auto end = process.Wait(30s);
    return end && end->signal == 0 ? end->code : -1;
  };
  const std::string at = dir.path().string();
  CHECK(kvctl({"ca", at}) == 0);
  CHECK(kvctl({"cert", "a", "--ca", at, "--domain", a.domain()}) == 0);
  CHECK(kvctl({"cert", "b", "--ca", at, "--domain", b.domain()}) == 0);
  CHECK(kvctl({"revoke", "--ca", at}) == 0);
  CHECK(kvctl({"revoke", dir / "b.pem", "--ca", at}) == 0);
  CHECK(kvctl({"revoke", dir / "b.pem", "--ca", at}) == 0);  // once more
  CHECK(kvctl({"revoke", dir / "b.key", "--ca", at}) != 0);
  CHECK_FALSE(std::filesystem::exists(dir / "crl.pem.new"));
  CHECK(kvctl({"ca", at}) != 0);  // nothing is replaced
  CHECK(kvctl({"cert", "a", "--ca", at, "--domain", a.domain()}) != 0);
  using Perms = std::filesystem::perms;
  for (const char* key : {"ca.key", "a.key", "b.key"})
    CHECK(std::filesystem::status(dir / key).permissions() == (Perms::owner_read | Perms::owner_write));
  const auto options = [&](const std::string& node) {
    return std::vector<std::string>{"--tls-ca", dir / "ca.pem", "--tls-cert", dir / (node + ".pem"), "--tls-key", dir / (node + ".key")};
  };
  CHECK(JoinBetween(options("a"), options("b"), a, b).empty());
  std::vector<std::string> checking = options("a");
  checking.insert(checking.end(), {"--tls-crl", dir / "crl.pem"});
  CHECK_FALSE(JoinBetween(checking, options("b"), a, b).empty());
}
