// kvctl on memory that kvmd keeps without its owner.
#include "tests/catch.h"
#include "tests/support/kvctl_sandbox.h"
#include "tests/support/kvmd_process.h"
#include "tests/support/remote_worker.h"

namespace {

using namespace kvm;
using test::KvmdProcess;
using test::Number;
using test::RemoteWorker;
using test::Sandbox;

std::int64_t Orphans(const Sandbox& sandbox, const KvmdProcess& kvmd) {
  return Number(sandbox.Run("status --json --socket " + kvmd.socket()).Json().at("domains").at(0), "orphans");
}

}  // namespace

TEST_CASE("kvctl reclaim: shows what dead workers left, and gives up what is asked for", "[integration]") {
  const Sandbox sandbox;
  KvmdProcess kvmd;
  const std::string socket = " --socket " + kvmd.socket();
  for (const char* name : {"pool-a", "pool-b", "pool-c"}) {
    RemoteWorker worker({.socket = kvmd.socket(), .name = name});
    worker.Publish("a:5", 0);
    worker.Kill();
  }
  REQUIRE(test::Eventually([&] { return Orphans(sandbox, kvmd) == 3; }));
  CHECK(sandbox.Run("status" + socket).out.find("orphan") != std::string::npos);
  CHECK(sandbox.Run("regions" + socket).out.find("orphan") != std::string::npos);

  const Sandbox::Output unsaid = sandbox.Run("reclaim" + socket);
  CHECK(unsaid.code == 1);
  CHECK(unsaid.err.find("--all") != std::string::npos);
  CHECK(sandbox.Run("reclaim --device 12345" + socket).code == 1);
  CHECK(Number(sandbox.Run("reclaim --older-than-s 1000 --json" + socket).Json(), "regions") == 0);
  const boost::json::value one = sandbox.Run("reclaim --region pool-b --json" + socket).Json();
  CHECK(Number(one, "regions") == 1);
  CHECK(Number(one, "blocks") == 5);
  CHECK(Number(one, "bytes") == 64 * 4096);
  CHECK(Number(one, "still_mapped") == 0);
  CHECK(Orphans(sandbox, kvmd) == 2);
  const Sandbox::Output rest = sandbox.Run("reclaim --device host" + socket);
  CHECK(rest.code == 0);
  CHECK(rest.out.find("2 regions of dead workers reclaimed") == 0);
  CHECK(Orphans(sandbox, kvmd) == 0);
  CHECK(sandbox.Run("reclaim --all --socket /nowhere").code == 2);
}
