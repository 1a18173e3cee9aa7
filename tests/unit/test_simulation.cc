// A node in one thread, from a seed (tests/simulation): many short lives of it, and that the
// simulation notices when a defence is missing. A seed that failed once becomes a test here.
#include <chrono>
#include <string>

#include "tests/catch.h"
#include "tests/simulation/simulation.h"

namespace {

using namespace kvm;
using simulation::Counted;
using simulation::Defect;
using std::chrono::seconds;

// As many seeds as there is time for, and one at least.
Counted RunSeeds(std::uint64_t seed, seconds time) {
  Counted sum;
  const auto end = std::chrono::steady_clock::now() + time;
  do {
    INFO("seed " << seed);
    sum.Add(simulation::RunSeed(seed++, 10'000));
  } while (std::chrono::steady_clock::now() < end);
  return sum;
}

// What the simulation says when a defence is missing; "" if it notices nothing in twenty seeds.
std::string FailsWith(Defect defect) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    try {
      simulation::RunSeed(seed, 10'000, defect);
    } catch (const simulation::Violation& violation) {
      return violation.what();
    }
  }
  return "";
}

void CheckFails(Defect defect, const std::string& says) {
  const std::string text = FailsWith(defect);
  INFO(text);
  CHECK(text.find(says) != std::string::npos);
  CHECK(text.find("seed") != std::string::npos);
}

}  // namespace

TEST_CASE("Simulation: a node keeps its invariants over deaths, restarts, lacks and lies", "[unit]") {
  const Counted counted = RunSeeds(1, seconds(8));
  UNSCOPED_INFO(counted.Text());
  CHECK(counted.validated > 0);
  CHECK(counted.caught > 0);
  CHECK(counted.validated_while_down > 0);
  CHECK(counted.validated_cached > 0);
  CHECK(counted.evicted > 0);
  CHECK(counted.leases > 0);
  CHECK(counted.adoptions > 0);
  CHECK(counted.unregistered > 0);
  CHECK(counted.restarts > 0);
  CHECK(counted.lacks > 0);
}

TEST_CASE("Simulation: a node keeps its invariants for a minute of seeds that no run had before", "[unit][nightly]") {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const Counted counted = RunSeeds(static_cast<std::uint64_t>(std::chrono::duration_cast<seconds>(now).count()), seconds(60));
  CHECK(counted.validated > 0);
}

TEST_CASE("Simulation: one seed gives the same node twice", "[unit]") {
  CHECK(simulation::RunSeed(7, 5000).Text() == simulation::RunSeed(7, 5000).Text());
}

TEST_CASE("Simulation: an owner that does not withdraw a block before it writes is noticed", "[unit]") {
  CheckFails(Defect::kOwnerDoesNotWithdraw, "I2");
}

TEST_CASE("Simulation: an importer that does not look at the generation again is noticed", "[unit]") {
  CheckFails(Defect::kImporterDoesNotValidate, "I2, I4: a validated copy holds other bytes than its key's");
}

TEST_CASE("Simulation: a copy that is reported before it is complete is noticed", "[unit]") {
  CheckFails(Defect::kStoreReportedTooEarly, "I2");
}

TEST_CASE("Simulation: an owner that announces its end and does not write it is noticed", "[unit]") {
  CheckFails(Defect::kEndNotWritten, "I10");
}

TEST_CASE("Simulation: a check whose sum is wrong fails", "[unit]") { CheckFails(Defect::kWrongSum, "I11"); }

TEST_CASE("Simulation: memory that a process still has beyond its end is noticed", "[unit]") {
  CheckFails(Defect::kDescriptorLeft, "bytes of granted memory are counted");
}
