// [domain.NAME] of the configuration file: who is in a domain, and what differs there.
#include <fstream>
#include <iostream>
#include <sstream>

#include "tests/support/broker/broker_node.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {
namespace {

// What kvmd makes of a configuration file; empty if it refuses it, and `said` is why.
struct Parsed {
  explicit Parsed(const std::string& text) {
    const TempDir dir;
    const std::string path = dir / "kvmd.toml";
    std::ofstream(path) << text;
    std::string name = "kvmd", option = "--config", file = path;
    char* argv[] = {name.data(), option.data(), file.data()};
    std::ostringstream err;
    std::streambuf* const old = std::cerr.rdbuf(err.rdbuf());
    daemon::ParsedArguments arguments = daemon::ParseArguments(3, argv);
    std::cerr.rdbuf(old);
    said = err.str();
    refused = arguments.exit;
    config = std::move(arguments.config);
  }
  bool refused = false;
  std::string said;
  Config config;
};

constexpr const char* kTeams = R"(
max-entries = 5000
admins = [7]
[domain.team-a]
uids = [2001, 2002]
max-entries = 1000
max-regions = 8
max-host-cache = "1G"
orphans = false
zero-on-free = true
admins = [2002]
[domain.web]
gids = [300]
)";

}  // namespace

TEST_CASE("Domains: the file names users and groups, and what differs for them", "[unit]") {
  const Parsed parsed(kTeams);
  INFO(parsed.said);
  REQUIRE_FALSE(parsed.refused);
  REQUIRE(parsed.config.domains.size() == 2);
  CHECK(parsed.config.max_entries == 5000);
  CHECK(parsed.config.admins == std::vector<std::uint32_t>{7});
  const daemon::DomainRule& team = parsed.config.domains[0];
  CHECK(team.name == "team-a");
  CHECK(team.uids == std::vector<std::uint32_t>{2001, 2002});
  CHECK(team.max_entries == 1000u);
  CHECK(team.max_host_cache == std::uint64_t{1} << 30);
  CHECK_FALSE(team.orphans);
  CHECK(team.zero_on_free);
  CHECK_FALSE(parsed.config.domains[1].zero_on_free);
  CHECK(parsed.config.domains[1].gids == std::vector<std::uint32_t>{300});
}

TEST_CASE("Domains: a section that names no user, twice the same, or something unknown is refused", "[unit]") {
  const auto refused = [](const std::string& text, const std::string& why) {
    const Parsed parsed(text);
    INFO(text);
    CHECK(parsed.refused);
    CheckSays(parsed.said, why);
  };
  refused("[domain.a]\nmax-entries = 1000\n", "neither uids nor gids");
  refused("[domain.a]\nuids = [1]\n[domain.b]\nuids = [1]\n", "user 1 is named twice");
  refused("[domain.a]\ngids = [1]\n[domain.b]\ngids = [1]\n", "group 1 is named twice");
  refused("[domain.a]\nuids = [1]\ncolour = 3\n", "domain.a");
  refused("[domain.a]\nuids = [-1]\n", "domain.a");
  refused("[domain.a]\nuids = [1]\nmax-entries = 1\n", "domain.a");
  refused("[domain.uid-1]\nuids = [1]\n", "kvmd names other domains so");
  refused("[domain.node]\nuids = [1]\n", "kvmd names other domains so");
  refused("[domain.A]\nuids = [1]\n", "lower-case");
  refused("[domain]\nuids = [1]\n", "[domain.NAME]");
  refused("[domains.a]\nuids = [1]\n", "");
}

TEST_CASE("Domains: the kernel's user and group decide, and users without a section are as before", "[unit]") {
  Node node(Parsed(kTeams).config);
  const auto domain_of = [&](std::uint32_t uid, std::uint32_t gid) {
    FakeConnection connection;
    const ClientId id = node.broker.Join(connection, {kDeadPid, uid, gid}, {});
    kvmwire::ClientMessage hello;
    hello.mutable_hello()->set_protocol_version(kProtocolVersion);
    hello.mutable_hello()->set_client_name("client");
    node.Handle(id, hello);
    const std::string domain = connection.Take(Body::kHelloReply).message.hello_reply().domain();
    node.broker.Leave(id, false);
    return domain;
  };
  CHECK(domain_of(2001, 2001) == "team-a");
  CHECK(domain_of(2002, 300) == "team-a");  // the user wins
  CHECK(domain_of(2003, 300) == "web");
  CHECK(domain_of(2003, 2003) == "uid-2003");
}

TEST_CASE("Domains: a domain's quotas are its own, and so is whether the memory of dead workers stays", "[unit]") {
  Node node(Parsed(kTeams).config);
  const auto orphans_after = [&](std::uint32_t uid) {
    FakeConnection connection;
    const ClientId id = node.Join(connection, kDeadPid, uid);
    WireRegion pool = node.Granted(id, connection, "pool", 8);
    node.Register(id, connection, pool);
    node.broker.Leave(id, true);
    node.WorkAll();
    return node.Domain(uid).orphans();
  };
  CHECK(orphans_after(2001) == 0);
  CHECK(orphans_after(2003) == 1);
  // Six of eight regions are one user's: others are in the domain.
  FakeConnection connection;
  const ClientId id = node.Join(connection, kDeadPid, 2001);
  std::vector<WireRegion> regions;
  for (int i = 0; i < 6; ++i) {
    regions.emplace_back("pool-" + std::to_string(i), LlamaSpec(), 8);
    node.Register(id, connection, regions.back());
  }
  WireRegion more("one-more", LlamaSpec(), 8);
  node.Handle(id, more.RegisterMessage(), more.fds());
  CheckSays(connection.TakeError(), "6 (--max-regions-per-user)");
}

TEST_CASE("Domains: admins reclaim the memory of all dead workers, of their domain or of all", "[unit]") {
  Config config = Parsed(kTeams).config;
  config.domains[0].orphans = true;
  Node node(config);
  const auto leave_orphan = [&](std::uint32_t uid) {
    FakeConnection connection;
    const ClientId id = node.Join(connection, kDeadPid, uid);
    WireRegion pool = node.Granted(id, connection, "pool", 8);
    node.Register(id, connection, pool);
    node.broker.Leave(id, true);
  };
  const auto reclaims = [&](std::uint32_t uid) {
    FakeConnection connection;
    const ClientId id = node.Join(connection, kDeadPid + 1, uid, kvmwire::OBSERVER);
    kvmwire::ClientMessage message;
    message.mutable_reclaim();
    node.Handle(id, message);
    node.WorkAll();
    const std::uint32_t regions = connection.Take(Body::kReclaimReply).message.reclaim_reply().regions();
    node.broker.Leave(id, false);
    return regions;
  };
  leave_orphan(2001);
  leave_orphan(2003);
  CHECK(reclaims(2004) == 0);
  CHECK(reclaims(2002) == 1);  // an admin of the domain
  leave_orphan(2001);
  CHECK(reclaims(7) == 2);
}

}  // namespace kvm::test
