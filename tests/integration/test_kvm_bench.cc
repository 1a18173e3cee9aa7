// kvm_bench's commands: what did not happen is no figure, and nothing is left behind.
#include <filesystem>
#include <string>

#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/process/child_process.h"
#include "tests/support/process/eventually.h"

namespace {

using namespace kvm;
using test::Eventually;
using test::ReadFile;
using test::Sandbox;

}  // namespace

TEST_CASE("kvm_bench find: a redis-server that has lost a key gives no figure, and one that has not is left empty", "[integration]") {
  const Sandbox sandbox;
  // Where there is such a command, it names what it lacks.
  if (sandbox.RunBeside("kvm_bench", "find").err.find("--against-redis") == std::string::npos) KVM_SKIP("built without hiredis");
  if (::system("command -v redis-server redis-cli >/dev/null") != 0) KVM_SKIP("no redis-server here");
  const std::string socket = sandbox.path() / "redis.sock", bench = "find --json --keys 100 --rounds 300 --against-redis " + socket;
  const auto keys = [&] {
    const std::string file = sandbox.path() / "dbsize";
    REQUIRE(::system(("redis-cli -s " + socket + " dbsize >" + file).c_str()) == 0);
    return std::stoi(ReadFile(file));
  };
  const test::ChildProcess redis(
      {"/usr/bin/env", "redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"},
      sandbox.path() / "redis.log");
  REQUIRE(Eventually([&] { return std::filesystem::exists(socket); }));
  const Sandbox::Output good = sandbox.RunBeside("kvm_bench", bench + " --entries 20000");
  INFO(good.err);
  CHECK(good.code == 0);
  CHECK(good.Json().as_object().contains("redis_mget_p50_us"));
  CHECK(keys() == 0);

  REQUIRE(::system(("redis-cli -s " + socket + " config set maxmemory-policy allkeys-random >/dev/null && redis-cli -s " + socket +
                    " config set maxmemory 3mb >/dev/null")
                       .c_str()) == 0);
  const Sandbox::Output lost = sandbox.RunBeside("kvm_bench", bench + " --entries 60000");
  CHECK(lost.code == 3);
  CHECK(lost.out.empty());
  CHECK(lost.err.find("redis: a key that was stored is missing") != std::string::npos);
  CHECK(keys() == 0);
}
