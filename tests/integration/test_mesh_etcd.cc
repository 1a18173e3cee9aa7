// Nodes that find each other through a real etcd: while nodes come, leave and die, and while etcd
// restarts, compacts, loses leases or data, or is away.
#include <csignal>
#include <fstream>
#include <set>
#include <vector>

#include "client/mesh/membership/etcd_messages.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/mesh/etcd_process.h"
#include "tests/support/mesh/mesh_process.h"
#include "tests/support/mesh/tcp_relay.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::EtcdProcess;
using test::Eventually;
using test::JoinBy;
using test::KvmdProcess;
using test::MeshProcess;
using test::Sandbox;
using test::StatusOf;
using test::TcpRelay;
using test::Text;
using test::Worker;

constexpr auto kPatience = 60s;
// Seconds of a lease: of tests that wait for its end, and of those in which it must not end.
constexpr const char *kShortLease = "3", *kLongLease = "120";

std::vector<std::string> Options(const std::string& url, const char* ttl, std::vector<std::string> more = {}) {
  std::vector<std::string> out{"--etcd", url, "--etcd-lease-ttl", ttl};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

struct Node {
  Node(const std::string& name, const std::string& url, const char* ttl = kLongLease, const std::vector<std::string>& more = {})
      : mesh(kvmd, name, {}, {}, Options(url, ttl, more)) {}

  std::set<std::string> Peers() const {
    std::set<std::string> out;
    const kvmmesh::Status status = StatusOf(mesh);
    for (const auto& peer : status.peers()) out.insert(peer.node());
    return out;
  }
  bool Sees(const std::set<std::string>& nodes) const {
    return Eventually([&] { return Peers() == nodes; }, kPatience);
  }
  bool Answered() const {
    return Eventually(
        [&] {
          const kvmmesh::Status status = StatusOf(mesh);
          return status.peers_size() > 0 &&
                 std::all_of(status.peers().begin(), status.peers().end(), [](const auto& peer) { return peer.fresh(); });
        },
        kPatience);
  }
  std::string Log() const { return test::LogOf(kvmd); }
  std::size_t Logged(const std::string& text) const {
    const std::string log = Log();
    std::size_t out = 0;
    for (std::size_t at = log.find(text); at != std::string::npos; at = log.find(text, at + 1)) ++out;
    return out;
  }
  bool Logs(const std::string& text, std::size_t times = 1) const {
    return Eventually([&] { return Logged(text) >= times; }, kPatience);
  }
  std::string Domain() const { return StatusOf(mesh).domain(); }
  bool Registered() const {
    return Eventually([&] { return StatusOf(mesh).etcd().entry() == kvmmesh::EtcdStatus::REGISTERED; }, kPatience);
  }

  KvmdProcess kvmd;
  MeshProcess mesh;
};

std::unique_ptr<Worker> StartWorker(const Node& node, const std::string& name) {
  return test::StartWorker({.socket = node.kvmd.socket(), .name = name});
}

// What `from` has published is joined by a worker of `to`.
bool Joins(Worker& publisher, Worker& joiner, const Node& to, const std::string& prompt) {
  publisher.Publish(prompt, 0);
  KVM_REQUIRE_OK(publisher.Flush());
  const std::size_t blocks = publisher.Keys(prompt).size();
  return Eventually([&] { return joiner.client().JoinCache(joiner.region(), joiner.Keys(prompt), JoinBy(to.mesh, 5s)).blocks == blocks; },
                    kPatience);
}

// An authority (ca.pem) and a certificate of it for 127.0.0.1 (etcd.pem, etcd.key), which also is
// good for a client. False: there is no openssl.
bool MakeCertificates(const test::TempDir& dir) {
  const std::vector<std::vector<std::string>> commands{
      {"req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ca", "-keyout", dir / "ca.key", "-out", dir / "ca.pem"},
      {"req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=etcd", "-keyout", dir / "etcd.key", "-out", dir / "etcd.csr"},
      {"x509", "-req", "-days", "2", "-in", dir / "etcd.csr", "-CA", dir / "ca.pem", "-CAkey", dir / "ca.key", "-CAcreateserial",
       "-extfile", dir / "extensions", "-out", dir / "etcd.pem"},
  };
  std::ofstream(dir / "extensions") << "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
  for (std::vector<std::string> command : commands) {
    command.insert(command.begin(), "/usr/bin/openssl");
    const auto end = test::ChildProcess(command, dir / "openssl.log").Wait(kPatience);
    if (!end || !end->clean()) return false;
  }
  return true;
}

// Looks at the members that etcd has until they are so many.
bool Listed(const EtcdProcess& etcd, std::size_t entries) {
  return Eventually([&] { return etcd.List("/kvmd-mesh/").size() == entries; }, kPatience);
}

// Looks at the members that etcd has until they are these, by the ends of their keys. A node that
// etcd answers too late keeps others for the time of a lease, so no node is asked.
bool Lists(const EtcdProcess& etcd, const std::set<std::string>& nodes) {
  return Eventually(
      [&] {
        std::set<std::string> listed;
        for (const auto& [key, value] : etcd.List("/kvmd-mesh/")) listed.insert(key.substr(key.rfind('/') + 1));
        return listed == nodes;
      },
      kPatience);
}

std::string EntryOf(const std::string& node, const std::string& domain, const std::string& address) {
  return mesh::EncodeEtcdEntry({{node, address}, domain, 7});
}

}  // namespace

TEST_CASE("Mesh etcd: three nodes find each other, and one joins what another has", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  Node a("a", etcd.url()), b("b", etcd.url()), c("c", etcd.url());
  CHECK(a.Sees({"b", "c"}));
  CHECK(b.Sees({"a", "c"}));
  CHECK(c.Sees({"a", "b"}));
  const auto publisher = StartWorker(a, "publisher"), joiner = StartWorker(c, "joiner");
  CHECK(Joins(*publisher, *joiner, c, "p:4"));
  CHECK(joiner->FindAndImport("p:4", 10).wrong == 0);
  const kvmmesh::Status status = StatusOf(c.mesh);
  CHECK(status.etcd().connected());
  CHECK(status.etcd().members() == 2);
  CHECK(status.etcd().advertised() == c.mesh.address());
  for (const auto& peer : status.peers()) CHECK(peer.known_from() == "etcd");
}

TEST_CASE("Mesh etcd: a node that ends leaves the list at once, long before its lease ends", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  Node a("a", etcd.url()), b("b", etcd.url());
  REQUIRE(a.Sees({"b"}));
  REQUIRE(Listed(etcd, 2));
  CHECK(b.mesh.Stop().clean());
  CHECK(etcd.List("/kvmd-mesh/").size() == 1);
  CHECK(a.Sees({}));
  CHECK(b.Logged("event=etcd_left ") == 1);
}

TEST_CASE("Mesh etcd: a node that is killed leaves when its lease ends, and not before", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  Node a("a", etcd.url(), kShortLease), b("b", etcd.url(), kShortLease), c("c", etcd.url());
  REQUIRE(a.Sees({"b", "c"}));
  c.mesh.Kill();
  b.mesh.Kill();
  CHECK(a.Sees({"c"}));
  CHECK(Listed(etcd, 2));
}

TEST_CASE("Mesh etcd: a node that was killed and is started again at its address has its entry at once", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  Node a("a", etcd.url());
  auto b = std::make_unique<Node>("b", etcd.url());
  REQUIRE(a.Sees({"b"}));
  const std::string address = b->mesh.address();
  const std::string before = etcd.List("/kvmd-mesh/").back().second;
  b->mesh.Kill();
  Node again("b", etcd.url(), kLongLease, {"--listen", address});
  CHECK(again.Registered());
  CHECK(etcd.List("/kvmd-mesh/").back().second != before);
  CHECK(again.Logged("event=etcd_name_taken") == 0);
  // Nothing has changed for others.
  CHECK(a.Logged("event=peer_left") == 0);
}

TEST_CASE("Mesh etcd: the second node with a name says so, and is listed once the first has gone", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  Node other("other", etcd.url()), first("b", etcd.url(), kShortLease);
  REQUIRE(other.Sees({"b"}));
  REQUIRE(first.Registered());
  Node second("b", etcd.url(), kShortLease);
  CHECK(second.Logs("event=etcd_name_taken key=/kvmd-mesh/" + first.Domain() + "/b by=" + first.mesh.address()));
  CHECK(StatusOf(second.mesh).etcd().entry() == kvmmesh::EtcdStatus::NAME_TAKEN);
  const Sandbox sandbox;
  CHECK(sandbox.Run("mesh status --mesh-socket " + second.mesh.socket()).out.find("another process has its name") != std::string::npos);
  // It tries again, and that is not logged again.
  CHECK(StatusOf(other.mesh).peers(0).address() == first.mesh.address());
  first.mesh.Kill();
  CHECK(second.Registered());
  CHECK(
      Eventually([&] { return StatusOf(other.mesh).peers_size() == 1 && StatusOf(other.mesh).peers(0).address() == second.mesh.address(); },
                 kPatience));
  CHECK(second.Logged("event=etcd_name_taken") == 1);
}

TEST_CASE("Mesh etcd: after a restart of etcd its nodes are still known, and new ones are found", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  Node a("a", etcd.url()), b("b", etcd.url());
  REQUIRE(a.Sees({"b"}));
  REQUIRE(b.Sees({"a"}));
  etcd.Kill();
  REQUIRE(a.Logs("event=etcd_lost"));
  etcd.Start();
  Node c("c", etcd.url());
  CHECK(a.Sees({"b", "c"}));
  CHECK(b.Sees({"a", "c"}));
  CHECK(a.Logged("event=peer_left") == 0);
  CHECK(b.Logged("event=peer_left") == 0);
}

TEST_CASE("Mesh etcd: while etcd is away for longer than a lease, nodes that know each other join, and stay", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  enum class How { kKilled, kStopped, kNewOne };
  const How how = GENERATE(How::kKilled, How::kStopped, How::kNewOne);
  CAPTURE(static_cast<int>(how));
  EtcdProcess etcd;
  Node a("a", etcd.url(), kShortLease), b("b", etcd.url(), kShortLease);
  REQUIRE(a.Sees({"b"}));
  REQUIRE(b.Sees({"a"}));
  REQUIRE(a.Answered());
  const auto publisher = StartWorker(a, "publisher"), joiner = StartWorker(b, "joiner");
  const auto away_since = std::chrono::steady_clock::now();
  if (how == How::kStopped) etcd.Signal(SIGSTOP);
  if (how != How::kStopped) etcd.Kill();
  REQUIRE(a.Logs("event=etcd_lost for=members"));
  CHECK(Joins(*publisher, *joiner, b, "p:4"));
  // All leases have ended by the time of etcd's return.
  REQUIRE(Eventually([&] { return std::chrono::steady_clock::now() - away_since > 8s; }, kPatience));
  CHECK(Joins(*publisher, *joiner, b, "q:4"));
  if (how == How::kStopped) etcd.Signal(SIGCONT);
  if (how == How::kNewOne) etcd.LoseData();
  if (how != How::kStopped) etcd.Start();
  REQUIRE(a.Logs("event=etcd_connected for=members", 2));
  REQUIRE(b.Logs("event=etcd_connected for=members", 2));
  CHECK(Listed(etcd, 2));
  // One that dies now leaves, so the list is followed again.
  Node c("c", etcd.url(), kShortLease);
  CHECK(a.Sees({"b", "c"}));
  CHECK(b.Sees({"a", "c"}));
  c.mesh.Kill();
  CHECK(a.Sees({"b"}));
  CHECK(b.Sees({"a"}));
  CHECK(a.Logged("event=peer_left node=b") == 0);
  CHECK(b.Logged("event=peer_left node=a") == 0);
  CHECK(Joins(*publisher, *joiner, b, "r:4"));
}

TEST_CASE("Mesh etcd: a node that was cut off while etcd compacted reads the list again", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  TcpRelay relay(etcd.url());
  Node a("a", etcd.url()), b("b", relay.url());
  auto c = std::make_unique<Node>("c", etcd.url());
  REQUIRE(b.Sees({"a", "c"}));
  REQUIRE(b.Registered());
  relay.Cut();
  REQUIRE(Eventually([&] { return relay.refused() > 1; }, kPatience));
  CHECK(c->mesh.Stop().clean());
  Node d("d", etcd.url());
  REQUIRE(Lists(etcd, {"a", "b", "d"}));
  etcd.Compact();
  CHECK(b.Peers() == std::set<std::string>{"a", "c"});
  relay.Mend();
  CHECK(b.Logs("event=etcd_compacted"));
  // c is kept for the time of a lease, since etcd has been away for b.
  CHECK(b.Sees({"a", "c", "d"}));
  CHECK(StatusOf(b.mesh).etcd().leaving() == 1);
}

TEST_CASE("Mesh etcd: of several endpoints one that answers is used", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  TcpRelay relay(etcd.url()), away(etcd.url());
  away.Cut();
  Node a("a", away.url() + "," + relay.url() + "," + etcd.url()), b("b", etcd.url());
  REQUIRE(a.Sees({"b"}));
  relay.Cut();
  Node c("c", etcd.url());
  CHECK(a.Sees({"b", "c"}));
}

TEST_CASE("Mesh etcd: an entry that was deleted by hand is put again", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  Node a("a", etcd.url()), b("b", etcd.url());
  REQUIRE(b.Registered());
  etcd.Delete(mesh::EtcdKey("/kvmd-mesh/", b.Domain(), "b"));
  CHECK(b.Logs("event=etcd_registered", 2));
  CHECK(a.Sees({"b"}));
}

TEST_CASE("Mesh etcd: entries that can't be used are skipped, logged once each, and keep no node away", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  Node a("a", etcd.url());
  REQUIRE(a.Registered());
  const auto key = [&](const std::string& node) { return mesh::EtcdKey("/kvmd-mesh/", a.Domain(), node); };
  etcd.Put(key("json"), "{\"node\": ");
  etcd.Put(key("address"), EntryOf("address", a.Domain(), "not an address"));
  etcd.Put(key("far"), EntryOf("far", a.Domain(), "192.0.2.1:7600"));
  etcd.Put(key("other"), EntryOf("someone", a.Domain(), "127.0.0.1:9"));
  etcd.Put(key("domain"), EntryOf("domain", "uid:4294967294", "127.0.0.1:9"));
  etcd.Put(key("json"), "{\"node\": 1");
  etcd.Put(key("good"), EntryOf("good", a.Domain(), "127.0.0.1:9"));
  // What is no entry does not keep a node off its own key.
  etcd.Put(key("b"), "junk");
  CHECK(a.Sees({"good"}));
  Node b("b", etcd.url());
  CHECK(b.Registered());
  CHECK(a.Sees({"good", "b"}));
  CHECK(b.Sees({"good", "a"}));
  CHECK(a.Logged("event=etcd_entry_skipped key=" + key("json")) == 1);
  CHECK(a.Logged("event=etcd_entry_skipped key=" + key("far")) == 1);
  CHECK(a.Logged("event=etcd_entry_skipped") == 6);
}

TEST_CASE("Mesh etcd: a node in the configuration keeps the address that it has there", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  Node a("a", etcd.url(), kLongLease, {"--peers", "b=127.0.0.1:9"}), b("b", etcd.url()), c("c", etcd.url());
  REQUIRE(a.Sees({"b", "c"}));
  const kvmmesh::Status status = StatusOf(a.mesh);
  CHECK(status.peers(0).address() == "127.0.0.1:9");
  CHECK(status.peers(0).known_from() == "static");
  CHECK(status.peers(1).known_from() == "etcd");
  const Sandbox sandbox;
  const Sandbox::Output shown = sandbox.Run("--json mesh status --mesh-socket " + a.mesh.socket());
  CHECK(shown.code == 0);
  CHECK(Text(shown.Json().at("etcd"), "entry") == "registered");
  CHECK(Text(shown.Json().at("etcd"), "endpoint") == etcd.url());
  CHECK(sandbox.Run("mesh peers --mesh-socket " + a.mesh.socket()).out.find("known from") != std::string::npos);
}

TEST_CASE("Mesh etcd: over TLS etcd's certificate is checked, and one that is not trusted is no etcd", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd({"--auto-tls"}), other({"--auto-tls"});
  Node a("a", etcd.url(), kLongLease, {"--etcd-ca", etcd.own_certificate()}),
      b("b", etcd.url(), kLongLease, {"--etcd-ca", etcd.own_certificate()});
  CHECK(a.Sees({"b"}));
  Node wrong("wrong", etcd.url(), kLongLease, {"--etcd-ca", other.own_certificate()});
  CHECK(wrong.Logs("event=etcd_lost for=members"));
  CHECK(wrong.Log().find("self-signed certificate") != std::string::npos);
  CHECK_FALSE(StatusOf(wrong.mesh).etcd().connected());
  CHECK(wrong.Peers().empty());
  // By name the certificate is not etcd's: it is for the address.
  std::string by_name = etcd.url();
  by_name.replace(by_name.find("127.0.0.1"), 9, "localhost");
  Node named("named", by_name, kLongLease, {"--etcd-ca", etcd.own_certificate()});
  CHECK(named.Logs("event=etcd_lost for=members"));
  CHECK(named.Peers().empty());
}

TEST_CASE("Mesh etcd: a certificate of this node's is shown to an etcd that wants one", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  const test::TempDir dir;
  if (!MakeCertificates(dir)) KVM_SKIP("there is no openssl to make certificates with");
  EtcdProcess etcd(
      {"--cert-file", dir / "etcd.pem", "--key-file", dir / "etcd.key", "--client-cert-auth", "--trusted-ca-file", dir / "ca.pem"});
  const std::vector<std::string> with{"--etcd-ca", dir / "ca.pem", "--etcd-cert", dir / "etcd.pem", "--etcd-key", dir / "etcd.key"};
  Node a("a", etcd.url(), kLongLease, with), b("b", etcd.url(), kLongLease, with);
  CHECK(a.Sees({"b"}));
  Node without("without", etcd.url(), kLongLease, {"--etcd-ca", dir / "ca.pem"});
  CHECK(without.Logs("event=etcd_lost for=members"));
  CHECK(without.Peers().empty());
}

TEST_CASE("Mesh etcd: with authentication a node gets in by its credentials only", "[integration]") {
  if (!EtcdProcess::Available()) KVM_SKIP(EtcdProcess::kWhy);
  EtcdProcess etcd;
  REQUIRE(etcd.Ask("/v3/auth/user/add", {{"name", "root"}, {"password", "pass word"}}));
  REQUIRE(etcd.Ask("/v3/auth/role/add", {{"name", "root"}}));
  REQUIRE(etcd.Ask("/v3/auth/user/grant", {{"user", "root"}, {"role", "root"}}));
  REQUIRE(etcd.Ask("/v3/auth/enable", {}));
  const test::TempDir dir;
  std::ofstream(dir / "good") << "root:pass word\n";
  std::ofstream(dir / "bad") << "root:password\n";
  Node a("a", etcd.url(), kLongLease, {"--etcd-credentials", dir / "good"}),
      b("b", etcd.url(), kLongLease, {"--etcd-credentials", dir / "good"});
  CHECK(a.Sees({"b"}));
  for (const std::vector<std::string>& options : std::vector<std::vector<std::string>>{{"--etcd-credentials", dir / "bad"}, {}}) {
    Node refused("c", etcd.url(), kLongLease, options);
    CHECK(refused.Logs("event=etcd_lost for=members"));
    CHECK(refused.Logs("event=etcd_lost for=own_entry"));
    CHECK(refused.Peers().empty());
  }
  CHECK(a.Peers() == std::set<std::string>{"b"});
}
