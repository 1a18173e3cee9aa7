// kvctl explain --last: the last misses of workers, which the workers report themselves.
#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace kvm::test;

boost::json::array Last(const Sandbox& sandbox, const KvmdProcess& kvmd, const std::string& options = "") {
  const auto said = sandbox.Run("explain --last --json " + options + " --socket " + kvmd.socket());
  INFO(said.out << said.err);
  REQUIRE(said.code == 0);
  return said.Json().as_object().at("misses").as_array();
}

}  // namespace

TEST_CASE("kvctl explain --last: reason, key and length of each miss, the newest first, and what is published since", "[integration]") {
  KvmdProcess kvmd({"--sweep-interval-ms", "600000"});
  auto owner = StartWorker({.socket = kvmd.socket(), .name = "owner"});
  auto seeker = StartWorker({.socket = kvmd.socket(), .name = "seeker"});
  const Sandbox sandbox;
  CHECK(sandbox.Run("explain --last --socket " + kvmd.socket()).out == "no lookup has ended before its last block\n");
  owner->Publish("a:4", 0);
  KVM_REQUIRE_OK(owner->Flush());
  REQUIRE(seeker->Find("a:4").size() == 4);  // no miss
  for (int i = 0; i < 3; ++i) REQUIRE(seeker->Find("a:4,b:2").size() == 4);
  owner->region().Retract(2);
  REQUIRE(seeker->Find("a:4").size() == 2);
  owner->Publish("a:4,b:1", 10);
  KVM_REQUIRE_OK(owner->Flush());

  boost::json::array misses;
  REQUIRE(Eventually([&] { return (misses = Last(sandbox, kvmd)).size() == 2; }));
  CHECK(Text(misses[0], "reason") == "stale");
  CHECK(Text(misses[0], "worker") == "seeker");
  CHECK(Text(misses[0], "key") == seeker->Keys("a:4")[2].ToHex());
  CHECK(Number(misses[0], "found") == 2);
  CHECK(Text(misses[1], "reason") == "absent");
  CHECK(Number(misses[1], "times") == 3);
  CHECK(Number(misses[1], "found") == 4);
  CHECK(Number(misses[1], "keys") == 6);
  CHECK(Text(misses[1], "key") == seeker->Keys("a:4,b:2")[4].ToHex());
  CHECK(misses[1].as_object().at("published_now").as_bool());

  CHECK(Last(sandbox, kvmd, "--worker seeker").size() == 2);
  CHECK(Last(sandbox, kvmd, "--worker owner").empty());
  CHECK(sandbox.Run("explain --last --worker stranger --socket " + kvmd.socket()).code == 1);
  const auto text = sandbox.Run("explain --last --socket " + kvmd.socket());
  CHECK(text.out.find("too late") != std::string::npos);
  CHECK(sandbox.Run("explain --last --tokens 1,2 --socket " + kvmd.socket()).code == 1);
}

TEST_CASE("kvctl explain --last: a worker's last eight misses are kept", "[integration]") {
  KvmdProcess kvmd;
  auto seeker = StartWorker({.socket = kvmd.socket(), .name = "seeker"});
  const Sandbox sandbox;
  for (int i = 0; i < 20; ++i) REQUIRE(seeker->Find("p" + std::to_string(i) + ":1").empty());
  REQUIRE(Eventually([&] {
    const boost::json::array misses = Last(sandbox, kvmd);
    return misses.size() == 8 && Text(misses[0], "key") == seeker->Keys("p19:1")[0].ToHex();
  }));
  CHECK(seeker->client().Stats().misses_absent == 20);
}
