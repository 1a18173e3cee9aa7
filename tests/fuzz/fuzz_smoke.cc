// The fuzz targets over a bounded number of seeded mutations: the same inputs on every machine, so
// that the normal suite notices at once when a parser loses a check. The search proper is
// libFuzzer's.
#include <string>

#include "tests/catch.h"
#include "tests/fuzz/mutator.h"
#include "tests/fuzz/targets.h"
#include "tests/support/process/fork.h"
#include "tests/support/process/open_fds.h"

namespace {

using namespace kvm;

fuzz::Bytes AsBytes(const std::string& input) { return {reinterpret_cast<const std::uint8_t*>(input.data()), input.size()}; }

// A crash names the round: KVM_FUZZ_ROUNDS and a debugger get there again.
void Smoke(const std::string& name, std::uint64_t rounds, std::uint64_t seed) {
  const fuzz::Target* target = fuzz::FindTarget(name);
  REQUIRE(target != nullptr);
  const std::vector<std::string> seeds = target->seeds();
  REQUIRE_FALSE(seeds.empty());
  for (const std::string& input : seeds) target->run(AsBytes(input));
  target->run({});
  const int fds = test::OpenFds();
  test::Random random(seed);
  for (std::uint64_t round = 0; round < fuzz::Rounds(rounds); ++round) {
    INFO("target " << name << ", seed " << seed << ", round " << round);
    target->run(AsBytes(fuzz::Mutate(seeds, random)));
  }
  CHECK(test::OpenFds() == fds);
}

}  // namespace

TEST_CASE("Fuzz smoke: the frame reader survives arbitrary streams and leaks no descriptor", "[unit]") { Smoke("frame_reader", 10000, 1); }

TEST_CASE("Fuzz smoke: wire messages survive arbitrary bytes", "[unit]") { Smoke("wire", 30000, 2); }

TEST_CASE("Fuzz smoke: canonical model specs survive arbitrary bytes", "[unit]") { Smoke("model_spec", 30000, 3); }

TEST_CASE("Fuzz smoke: a registry view survives arbitrary segments", "[unit]") { Smoke("registry_view", 5000, 4); }

TEST_CASE("Fuzz smoke: geometries survive arbitrary numbers", "[unit]") { Smoke("geometry", 30000, 5); }

TEST_CASE("Fuzz smoke: generation tables survive arbitrary bytes", "[unit]") { Smoke("generation_table", 30000, 6); }

TEST_CASE("Fuzz smoke: block keys are as different as what goes into them", "[unit]") { Smoke("block_key", 5000, 7); }

TEST_CASE("Fuzz smoke: a broker serves two honest users whatever a third one sends", "[unit]") { Smoke("broker", 100, 8); }

TEST_CASE("Fuzz smoke: configuration files survive arbitrary text", "[unit]") { Smoke("config_file", 100, 9); }

TEST_CASE("Fuzz smoke: a kvmd that starts from arbitrary manifests and registries serves", "[unit]") { Smoke("restore", 200, 10); }

TEST_CASE("Fuzz smoke: traces survive arbitrary text", "[unit]") { Smoke("trace", 10000, 11); }

#ifdef KVM_FUZZ_MESH
TEST_CASE("Fuzz smoke: a disk cache survives arbitrary files, and serves nothing that is not what was written", "[unit]") {
  Smoke("disk_segment", 300, 12);
}

TEST_CASE("Fuzz smoke: messages of etcd and entries in it survive arbitrary text", "[unit]") { Smoke("etcd_messages", 10000, 13); }
#endif

TEST_CASE("Fuzz smoke: a broken property aborts", "[unit]") {
  CHECK(test::RunInChild([]() -> int { fuzz::Broken("none; this test breaks it on purpose"); }).signal == SIGABRT);
}
