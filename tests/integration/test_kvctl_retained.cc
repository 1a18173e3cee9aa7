// kvctl on memory that kvmd keeps without its owner.
#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/remote_worker.h"

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

TEST_CASE("kvctl reclaim: shows the regions of dead workers, and frees those that are asked for", "[integration]") {
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

TEST_CASE("kvctl leases: shows leases and their clients, and reclaim frees leased regions with force only", "[integration]") {
  const Sandbox sandbox;
  KvmdProcess kvmd({"--max-clients", "40", "--max-clients-per-user", "30", "--max-fds-per-domain", "100"});
  const std::string socket = " --socket " + kvmd.socket();
  CHECK(sandbox.Run("leases --json" + socket).Json().at("leases").as_array().empty());
  RemoteWorker holder({.socket = kvmd.socket(), .name = "holder"});
  {
    RemoteWorker worker({.socket = kvmd.socket(), .name = "pool"});
    worker.Publish("a:5", 0);
    worker.Kill();
  }
  REQUIRE(test::Eventually([&] { return Orphans(sandbox, kvmd) == 1; }));
  REQUIRE(holder.AcquireLease("a:5", std::chrono::seconds(120)) == 5);
  const boost::json::value lease = sandbox.Run("leases --json" + socket).Json().at("leases").at(0);
  CHECK(lease.at("client").as_string() == "holder");
  CHECK(Number(lease, "pid") == holder.pid());
  CHECK(Number(lease, "blocks") == 5);
  CHECK(Number(lease, "host_cache_blocks") == 0);
  CHECK(Number(lease, "bytes") == 5 * 4096);
  CHECK(Number(lease, "left_ms") > 0);
  CHECK(sandbox.Run("leases" + socket).out.find("holder") != std::string::npos);

  const boost::json::value status = sandbox.Run("status --json" + socket).Json();
  CHECK(Number(status.at("domains").at(0), "leases") == 1);
  CHECK(Number(status.at("domains").at(0), "leased_blocks") == 5);
  CHECK(Number(status.at("domains").at(0), "fds") == 8);
  CHECK(Number(status.at("domains").at(0), "max_fds") == 100);
  CHECK(Number(status, "max_clients_per_user") == 30);
  CHECK(Number(status, "user_clients") == 2);
  CHECK(Number(status, "retained_fds") == 8);
  CHECK(Number(status, "max_retained_fds") > 100);
  CHECK(sandbox.Run("status" + socket).out.find("this user's 2 of 30") != std::string::npos);
  const Sandbox::Output doctor = sandbox.Run("doctor" + socket);
  CHECK(doctor.out.find("connections of this user") != std::string::npos);
  CHECK(doctor.out.find("8 of 100") != std::string::npos);

  const Sandbox::Output kept = sandbox.Run("reclaim --all" + socket);
  CHECK(kept.code == 0);
  CHECK(kept.out.find("1 more stay") != std::string::npos);
  CHECK(Orphans(sandbox, kvmd) == 1);
  const Sandbox::Output forced = sandbox.Run("reclaim --all --force" + socket);
  CHECK(forced.code == 0);
  CHECK(forced.out.find("1 region of dead workers reclaimed") == 0);
  CHECK(forced.out.find("1 lease has lost blocks") != std::string::npos);
  CHECK(Orphans(sandbox, kvmd) == 0);
  CHECK(sandbox.Run("leases --json" + socket).Json().at("leases").as_array().empty());
}
