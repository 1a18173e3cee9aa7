// Membership by etcd against a server that answers as a test wants: with what is no answer, too
// much, too late, an error, or another etcd's data. Members that are known stay, and the list is
// followed again afterwards.
#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <fstream>
#include <memory>
#include <vector>

#include "client/mesh/membership/etcd_membership.h"
#include "client/mesh/membership/static_membership.h"
#include "client/mesh/node/state/node_state.h"
#include "tests/catch.h"
#include "tests/support/mesh/fake_etcd.h"
#include "tests/support/process/temp_dir.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using mesh::EtcdMembership;
using mesh::EtcdSettings;
using mesh::Member;
using test::FakeEtcd;

constexpr const char *kRange = "/v3/kv/range", *kWatch = "/v3/watch", *kKeepAlive = "/v3/lease/keepalive";

std::string KeyOf(const std::string& node) { return mesh::EtcdKey("/kvmd-mesh/", "uid:7", node); }
std::string ValueOf(const std::string& node, const std::string& address = "127.0.0.1:9", std::uint64_t instance = 5) {
  return mesh::EncodeEtcdEntry({{node, address}, "uid:7", instance});
}

// Node "a" at a FakeEtcd.
struct Rig {
  explicit Rig(std::uint32_t ttl_s = 3, const std::function<void(EtcdSettings&)>& change = {}) {
    settings.endpoints = {etcd.url()};
    settings.lease_ttl_s = ttl_s;
    if (change) change(settings);
  }
  ~Rig() { io.shutdown(); }

  void Start() {
    EtcdMembership::Self self{"a", "127.0.0.1:7600", false, [this] { return domain; }};
    auto made = EtcdMembership::Create(io, settings, std::move(self));
    KVM_REQUIRE_OK(made);
    membership = std::move(*made);
    membership->Start([this](const std::vector<Member>& now) {
      members = now;
      ++changes;
      least = std::min(least, now.size());
    });
  }
  bool Until(const std::function<bool()>& done) {
    const auto deadline = std::chrono::steady_clock::now() + 60s;
    while (!done() && std::chrono::steady_clock::now() < deadline) io.run_for(3ms);
    return done();
  }
  void RunFor(std::chrono::milliseconds time) {
    const auto end = std::chrono::steady_clock::now() + time;
    while (std::chrono::steady_clock::now() < end) io.run_for(3ms);
  }
  kvmmesh::EtcdStatus Status() const {
    kvmmesh::Status out;
    membership->Describe(out);
    return out.etcd();
  }
  bool Registered() {
    return Until([&] { return Status().entry() == kvmmesh::EtcdStatus::REGISTERED; });
  }
  bool Knows(const std::vector<std::string>& nodes) {
    return Until([&] {
      return std::equal(members.begin(), members.end(), nodes.begin(), nodes.end(),
                        [](const Member& each, const std::string& name) { return each.node == name; });
    });
  }
  // With one member, that is known to this node.
  void StartWithMember() {
    etcd.Put(KeyOf("b"), ValueOf("b"));
    Start();
    REQUIRE(Knows({"b"}));
    REQUIRE(Registered());
    least = members.size();
  }

  FakeEtcd etcd;
  EtcdSettings settings;
  mesh::MeshIo io;
  std::string domain = "uid:7";
  std::unique_ptr<EtcdMembership> membership;
  std::vector<Member> members;
  int changes = 0;
  std::size_t least = 1000;  // members at a time
};

struct Wrong {
  std::string bytes;
  bool hang = false;
  std::string error;  // what the state says then
};

std::string Header(const std::string& more) { return R"({"header":{"revision":"5","cluster_id":"7"})" + more + "}"; }
std::string HugeBody() { return "HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\nxx"; }
std::string HugeChunks() { return FakeEtcd::StreamHeader() + FakeEtcd::Chunk(std::string(5u << 20, 'x')); }

std::vector<Wrong> WrongAnswers() {
  return {
      {FakeEtcd::Answer("{"), false, "no JSON object"},
      {FakeEtcd::Answer("[]"), false, "no JSON object"},
      {FakeEtcd::Answer("{}"), false, "without a header"},
      {FakeEtcd::Answer(Header(R"(,"kvs":7)")), false, "no array"},
      {FakeEtcd::Answer(Header(R"(,"kvs":[{"key":"!"}])")), false, "not base64"},
      {FakeEtcd::Answer(std::string(100'000, '[')), false, "no JSON object"},
      {"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"hea", false, "partial message"},
      {"HTTP/1.1 200 OK\r\nContent-Le", false, "partial message"},
      {"", false, "receive"},
      {"SSH-2.0-OpenSSH_9.2\r\n", false, "receive"},
      {HugeBody(), true, "body limit"},
      {HugeChunks(), true, "body limit"},
      {"HTTP/1.1 200 OK\r\nX: " + std::string(100'000, 'x'), true, "receive"},
      {FakeEtcd::Answer(R"({"error":"etcdserver: no leader","message":"etcdserver: no leader","code":14})", "503 Service Unavailable"),
       false, "no leader"},
      {FakeEtcd::Answer("oops", "500 Internal Server Error"), false, "HTTP 500"},
      {FakeEtcd::Answer("Not Found", "404 Not Found"), false, "HTTP 404"},
      {FakeEtcd::Answer("", "302 Found"), false, "HTTP 302"},
      {"", true, "no answer in time"},
      {"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{", true, "no answer in time"},
  };
}

}  // namespace

TEST_CASE("Mesh etcd: a list that is none is asked for again, whatever was answered", "[unit]") {
  for (const Wrong& wrong : WrongAnswers()) {
    CAPTURE(wrong.bytes.substr(0, 100), wrong.hang);
    Rig rig;
    rig.etcd.Put(KeyOf("b"), ValueOf("b"));
    rig.etcd.Next(kRange, {wrong.bytes, wrong.hang});
    rig.Start();
    CHECK(rig.Until([&] { return rig.Status().last_error().find(wrong.error) != std::string::npos; }));
    CHECK(rig.Knows({"b"}));
    CHECK(rig.Until([&] { return rig.Status().connected(); }));
    CHECK(rig.Status().last_error().empty());
  }
}

TEST_CASE("Mesh etcd: a watch that breaks goes on, and the members known so far stay", "[unit]") {
  const std::string begun =
      FakeEtcd::StreamHeader() + FakeEtcd::Chunk(R"({"result":{"header":{"revision":"99","cluster_id":"7"},"created":true}})"
                                                 "\n");
  const auto line = [&](const std::string& text) { return begun + FakeEtcd::Chunk(text + "\n"); };
  const std::vector<FakeEtcd::Trick> tricks{
      {line("{"), false},
      {line("[]"), true},
      {line(R"({"result":5})"), true},
      {line(R"({"result":{"header":{"cluster_id":"7"},"events":[{"kv":{"key":"!"}}]}})"), true},
      {line(R"({"result":{"header":{"cluster_id":"7"},"canceled":true,"cancel_reason":"because"}})"), true},
      {line(R"({"error":{"grpc_code":14,"http_code":503,"message":"no leader"}})"), true},
      {begun + FakeEtcd::Chunk(std::string(5u << 20, 'x')), true},  // one line without an end
      {begun + FakeEtcd::Chunk(R"({"result":{"hea)"), false},
      {begun + "0\r\n\r\n", false},
      {begun, false},
      {begun + "no chunk\r\n", true},
      {FakeEtcd::StreamHeader() + FakeEtcd::Chunk(R"({"result":{"header":{"revision":"99","cluster_id":"7"}}})"
                                                  "\n"),
       true},
      {FakeEtcd::StreamHeader(), true},  // and no line
      {FakeEtcd::Answer("no", "503 Service Unavailable"), false},
      {HugeBody(), true},
      {"", false},
  };
  for (const FakeEtcd::Trick& trick : tricks) {
    CAPTURE(trick.bytes.substr(0, 300), trick.hang);
    Rig rig;
    rig.StartWithMember();
    rig.etcd.Next(kWatch, trick);
    rig.etcd.CutWatches();
    CHECK(rig.Until([&] { return rig.etcd.Used(kWatch); }));
    rig.etcd.Put(KeyOf("c"), ValueOf("c"));
    CHECK(rig.Knows({"b", "c"}));
    CHECK(rig.least == 1);
  }
}

TEST_CASE("Mesh etcd: after a lost connection the watch goes on where it was, without another list", "[unit]") {
  Rig rig;
  rig.StartWithMember();
  const int lists = rig.etcd.Requests(kRange);
  for (const char* node : {"c", "d", "e"}) {
    rig.etcd.CutWatches();
    rig.etcd.Put(KeyOf(node), ValueOf(node));
    CHECK(rig.Until(
        [&] { return std::any_of(rig.members.begin(), rig.members.end(), [&](const Member& each) { return each.node == node; }); }));
  }
  CHECK(rig.Knows({"b", "c", "d", "e"}));
  CHECK(rig.etcd.Requests(kRange) == lists);
}

TEST_CASE("Mesh etcd: what was compacted away is read as a list again", "[unit]") {
  Rig rig;
  rig.StartWithMember();
  // Answers nothing until both changes are compacted away, though this test may be slow.
  for (int i = 0; i < 3; ++i) rig.etcd.Next(kWatch, {"", false});
  const int watches = rig.etcd.Requests(kWatch);
  rig.etcd.CutWatches();
  REQUIRE(rig.Until([&] { return rig.etcd.Requests(kWatch) > watches; }));
  const int lists = rig.etcd.Requests(kRange);
  rig.etcd.Put(KeyOf("c"), ValueOf("c"));
  rig.etcd.Put(KeyOf("d"), ValueOf("d"));
  rig.etcd.Compact();
  CHECK(rig.Knows({"b", "c", "d"}));
  CHECK(rig.etcd.Requests(kRange) == lists + 1);
  CHECK(rig.Until([&] { return rig.Status().connected(); }));
}

TEST_CASE("Mesh etcd: another etcd without data takes no member away before a lease's time, and gets this node's entry", "[unit]") {
  Rig rig(4);
  rig.StartWithMember();
  rig.etcd.Replace();
  const auto begin = std::chrono::steady_clock::now();
  CHECK(rig.Until([&] { return rig.etcd.Entries().contains(KeyOf("a")); }));
  CHECK(rig.Registered());
  CHECK(rig.Until([&] { return rig.Status().connected() && rig.Status().leaving() == 1; }));
  CHECK(rig.members.size() == 1);
  CHECK(rig.Knows({}));
  CHECK(std::chrono::steady_clock::now() - begin >= 4s);
}

TEST_CASE("Mesh etcd: members that come back meanwhile have never left", "[unit]") {
  Rig rig;
  rig.StartWithMember();
  rig.etcd.Put(KeyOf("c"), ValueOf("c"));
  REQUIRE(rig.Knows({"b", "c"}));
  rig.least = 2;
  rig.etcd.Replace();
  rig.etcd.Put(KeyOf("c"), ValueOf("c", "127.0.0.1:9", 6));
  REQUIRE(rig.Until([&] { return rig.Status().leaving() == 1; }));
  rig.etcd.Put(KeyOf("b"), ValueOf("b", "127.0.0.1:9", 6));
  REQUIRE(rig.Until([&] { return rig.Status().leaving() == 0; }));
  rig.RunFor(4s);  // a lease's time, after which those that are gone leave
  CHECK(rig.least == 2);
}

TEST_CASE("Mesh etcd: a lease that was lost is replaced, and the entry put again", "[unit]") {
  const std::vector<FakeEtcd::Trick> tricks{
      {},
      {FakeEtcd::Answer(R"({"message":"etcdserver: requested lease not found","code":5})", "404 Not Found"), false},
      {FakeEtcd::Answer(R"({"result":{"header":{},"ID":"1001"}})"), false},
      {FakeEtcd::Answer(R"({"result":{"header":{},"ID":"1001","TTL":"0"}})"), false},
  };
  for (const FakeEtcd::Trick& trick : tricks) {
    CAPTURE(trick.bytes);
    Rig rig;
    rig.StartWithMember();
    const int grants = rig.etcd.Requests("/v3/lease/grant");
    if (!trick.bytes.empty()) rig.etcd.Next(kKeepAlive, trick);
    rig.etcd.EndLeases();
    CHECK(rig.Until([&] { return rig.etcd.Requests("/v3/lease/grant") == grants + 1 && rig.etcd.Entries().contains(KeyOf("a")); }));
    CHECK(rig.Registered());
  }
}

TEST_CASE("Mesh etcd: a keepalive that is not answered well is sent again, and costs no lease", "[unit]") {
  for (const Wrong& wrong : WrongAnswers()) {
    if (wrong.bytes.starts_with("HTTP/1.1 404")) continue;
    CAPTURE(wrong.bytes.substr(0, 100), wrong.hang);
    Rig rig;
    rig.StartWithMember();
    const int grants = rig.etcd.Requests("/v3/lease/grant"), kept = rig.etcd.Requests(kKeepAlive);
    rig.etcd.Next(kKeepAlive, {wrong.bytes, wrong.hang});
    CHECK(rig.Until([&] { return rig.etcd.Used(kKeepAlive) && rig.etcd.Requests(kKeepAlive) >= kept + 2; }));
    CHECK(rig.etcd.Requests("/v3/lease/grant") == grants);
    CHECK(rig.Registered());
  }
}

TEST_CASE("Mesh etcd: an entry of another process keeps its name, and is taken over once it is gone", "[unit]") {
  Rig rig;
  rig.etcd.Put(KeyOf("a"), ValueOf("a", "127.0.0.1:1"));
  rig.Start();
  CHECK(rig.Until([&] { return rig.Status().entry() == kvmmesh::EtcdStatus::NAME_TAKEN; }));
  // It tries again with each keepalive.
  const int tries = rig.etcd.Requests("/v3/kv/txn");
  CHECK(rig.Until([&] { return rig.etcd.Requests("/v3/kv/txn") >= tries + 2; }));
  CHECK(rig.etcd.Entries()[KeyOf("a")] == ValueOf("a", "127.0.0.1:1"));
  rig.etcd.Delete(KeyOf("a"));
  CHECK(rig.Registered());
}

TEST_CASE("Mesh etcd: an entry of this node's address is one of an earlier process, once", "[unit]") {
  Rig rig;
  rig.etcd.Put(KeyOf("a"), ValueOf("a", "127.0.0.1:7600"));
  rig.Start();
  CHECK(rig.Registered());
  // One that comes later is of a second node with the same name and address.
  rig.etcd.Put(KeyOf("a"), ValueOf("a", "127.0.0.1:7600", 6));
  CHECK(rig.Until([&] { return rig.Status().entry() == kvmmesh::EtcdStatus::NAME_TAKEN; }));
  CHECK(rig.etcd.Entries()[KeyOf("a")] == ValueOf("a", "127.0.0.1:7600", 6));
}

TEST_CASE("Mesh etcd: a put whose answer was lost is known by its instance", "[unit]") {
  Rig rig;
  rig.etcd.Next("/v3/kv/txn", {"", false});
  rig.Start();
  CHECK(rig.Registered());
  rig.etcd.Delete(KeyOf("a"));
  CHECK(rig.Until([&] { return rig.etcd.Entries().contains(KeyOf("a")); }));
}

TEST_CASE("Mesh etcd: nothing is asked or written before the domain is known", "[unit]") {
  Rig rig;
  rig.domain.clear();
  rig.Start();
  rig.RunFor(300ms);
  CHECK(rig.etcd.Requests(kRange) == 0);
  CHECK(rig.etcd.Requests("/v3/lease/grant") == 0);
  rig.domain = "uid:7";
  CHECK(rig.Registered());
}

TEST_CASE("Mesh etcd: leaving ends the lease, and nothing is written afterwards", "[unit]") {
  Rig rig;
  rig.StartWithMember();
  bool left = false;
  boost::asio::co_spawn(rig.io, rig.membership->Leave(std::chrono::steady_clock::now() + 30s),
                        [&](const std::exception_ptr&) { left = true; });
  CHECK(rig.Until([&] { return left; }));
  CHECK_FALSE(rig.etcd.Entries().contains(KeyOf("a")));
  rig.RunFor(2s);
  CHECK_FALSE(rig.etcd.Entries().contains(KeyOf("a")));
}

TEST_CASE("Mesh etcd: leaving ends at its deadline if etcd says nothing", "[unit]") {
  Rig rig;
  rig.StartWithMember();
  for (int i = 0; i < 100; ++i) rig.etcd.Next("/v3/lease/revoke", {"", true});
  bool left = false;
  const auto deadline = std::chrono::steady_clock::now() + 1s;
  boost::asio::co_spawn(rig.io, rig.membership->Leave(deadline), [&](const std::exception_ptr&) { left = true; });
  CHECK(rig.Until([&] { return left; }));
  CHECK(rig.etcd.Requests("/v3/lease/revoke") >= 1);
}

TEST_CASE("Mesh etcd: with credentials each endpoint is asked for a token, and for another one if that is old", "[unit]") {
  const test::TempDir dir;
  std::ofstream(dir / "credentials") << "mesh:se:cret\nignored\n";
  Rig rig(3, [&](EtcdSettings& settings) { settings.credentials = dir / "credentials"; });
  rig.etcd.WantCredentials("mesh", "se:cret");
  rig.StartWithMember();
  rig.etcd.ForgetTokens();
  rig.etcd.CutWatches();
  rig.etcd.Put(KeyOf("c"), ValueOf("c"));
  CHECK(rig.Knows({"b", "c"}));
  CHECK(rig.least == 1);
  CHECK(rig.Registered());
}

TEST_CASE("Mesh etcd: wrong credentials are told, and right ones are used after a reload", "[unit]") {
  const test::TempDir dir;
  std::ofstream(dir / "credentials") << "mesh:old\n";
  Rig rig(3, [&](EtcdSettings& settings) { settings.credentials = dir / "credentials"; });
  rig.etcd.WantCredentials("mesh", "new");
  rig.etcd.Put(KeyOf("b"), ValueOf("b"));
  rig.Start();
  CHECK(rig.Until([&] { return rig.Status().last_error().find("invalid user ID or password") != std::string::npos; }));
  std::ofstream(dir / "credentials") << "mesh:new\n";
  rig.membership->Reload();
  CHECK(rig.Knows({"b"}));
  CHECK(rig.Registered());
}

TEST_CASE("Mesh etcd: files and an own address that are not good are errors at the start", "[unit]") {
  const test::TempDir dir;
  std::ofstream(dir / "credentials") << "no password";
  mesh::MeshIo io;
  EtcdSettings settings;
  settings.endpoints = {"https://127.0.0.1:1"};
  const EtcdMembership::Self self{"a", "127.0.0.1:7600", false, [] { return std::string("d"); }};
  const auto refused = [&](const EtcdMembership::Self& who, const char* why) {
    const auto made = EtcdMembership::Create(io, settings, who);
    REQUIRE_FALSE(made);
    CHECK(made.error().message.find(why) != std::string::npos);
  };
  for (const char* address : {"0.0.0.0:7600", "127.0.0.1:0", "192.0.2.1:7600", "a:1"}) {
    EtcdMembership::Self other = self;
    other.address = address;
    refused(other, "--advertise");
  }
  settings.credentials = dir / "credentials";
  refused(self, "USER:PASSWORD");
  settings.credentials = dir / "none";
  refused(self, "--etcd-credentials");
  settings.credentials.clear();
  settings.authority = dir / "credentials";
  refused(self, "--etcd-ca");
}

TEST_CASE("Static membership: a reload reports the peers of the file, and one that fails changes nothing", "[unit]") {
  Result<std::vector<Member>> file = std::vector<Member>{{"b", "127.0.0.1:2"}};
  mesh::StaticMembership membership({{"b", "127.0.0.1:1"}}, [&] { return file; });
  std::vector<std::vector<Member>> reported;
  membership.Start([&](const std::vector<Member>& members) { reported.push_back(members); });
  REQUIRE(reported.size() == 1);
  membership.Reload();
  REQUIRE(reported.size() == 2);
  CHECK(reported[1] == *file);
  membership.Reload();
  file = MakeError(Errc::kInvalidArgument, "no");
  membership.Reload();
  CHECK(reported.size() == 2);
}
