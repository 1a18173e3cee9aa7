// kvctl evict, on a kvmd with a host cache and a worker that stores there.
#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace kvm::test;

std::uint64_t Cached(const Sandbox& sandbox, const std::string& socket) {
  const boost::json::value status = sandbox.Run("status --json --socket " + socket).Json();
  const boost::json::array& domains = status.as_object().at("domains").as_array();
  return domains.empty() ? 0 : Number(domains[0].as_object().at("host_cache"), "blocks");
}

}  // namespace

TEST_CASE("kvctl evict: a key takes the blocks behind it along, a model and all take the rest, and the log says who", "[integration]") {
  KvmdProcess kvmd({"--host-cache", "16M", "--log-level", "info"});
  const Sandbox sandbox;
  const std::string socket = " --socket " + kvmd.socket();
  auto worker = StartWorker({.socket = kvmd.socket(), .name = "worker"});
  worker->Publish("a:8", 0);
  worker->Publish("b:4", 8);
  KVM_REQUIRE_OK(worker->Flush());
  REQUIRE(Eventually([&] { return Cached(sandbox, kvmd.socket()) == 12; }));

  CHECK(sandbox.Run("evict" + socket).code == 1);  // of what?
  CHECK(Cached(sandbox, kvmd.socket()) == 12);
  const auto of_key = sandbox.Run("evict --json --key " + worker->Keys("a:8")[5].ToHex() + socket);
  INFO(of_key.out << of_key.err);
  REQUIRE(of_key.code == 0);
  CHECK(Number(of_key.Json(), "blocks") == 3);
  CHECK(Cached(sandbox, kvmd.socket()) == 9);

  const auto of_other = sandbox.Run("evict --model other" + socket);
  CHECK(of_other.code == 1);
  CHECK(of_other.err.find(worker->model().spec.model_id) != std::string::npos);
  const auto of_model = sandbox.Run("evict --model " + worker->model().spec.model_id + socket);
  INFO(of_model.out << of_model.err);
  CHECK(of_model.code == 0);
  CHECK(of_model.out.find("9 blocks dropped from the host cache") == 0);
  CHECK(Cached(sandbox, kvmd.socket()) == 0);
  CHECK(sandbox.Run("evict --all" + socket).out.find("0 blocks dropped") == 0);
  CHECK(worker->Find("a:8").size() == 8);  // its own blocks stay
  CHECK(kvmd.Log().find("event=host_cache_evict_asked") != std::string::npos);
  CHECK(kvmd.Log().find("blocks=9") != std::string::npos);
}
