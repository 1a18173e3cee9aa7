// kvctl simulate: what `min` says is a bound, for any trace and any way to choose; and what an id
// is.
#include <set>

#include "client/kvctl/simulate/simulate.h"
#include "client/kvctl/simulate/simulated_cache.h"
#include "client/kvctl/workload/block_trace.h"
#include "tests/catch.h"
#include "tests/support/data/small_traces.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;
using test::BestHits;
using test::HitsOf;
using test::RandomIds;
using test::Requests;

// A cache that keeps any part of what it has and what comes: evicts at random, and lets blocks go
// by.
std::uint64_t RandomChoiceHits(const BlockTrace& trace, std::uint32_t capacity, test::Random& random) {
  std::set<std::uint32_t> resident;
  std::uint64_t hits = 0;
  for (std::size_t request = 0; request < trace.requests(); ++request) {
    bool leading = true;
    for (const std::uint32_t block : trace[request]) {
      leading = leading && resident.contains(block);
      hits += leading ? 1 : 0;
    }
    for (const std::uint32_t block : trace[request]) {
      if (random.Below(4) == 0) continue;
      resident.insert(block);
      while (resident.size() > capacity) resident.erase(std::next(resident.begin(), static_cast<long>(random.Below(resident.size()))));
    }
  }
  return hits;
}

}  // namespace

TEST_CASE("Simulate: min is no less than what any policy hits, where LRU does well and a loop does not fit", "[unit]") {
  std::vector<std::uint64_t> prompt(100);
  for (std::uint64_t i = 0; i < prompt.size(); ++i) prompt[i] = i;
  SimulateOptions options;
  options.capacities = {50, 99};
  const Result<SimulateReport> report = Simulate(options, Requests(std::vector<std::vector<std::uint64_t>>(20, prompt)));
  KVM_REQUIRE_OK(report);
  for (const SimulatedRow& row : report->rows) {
    INFO(row.policy << ", " << row.capacity_blocks);
    CHECK(row.hits <= report->Find(kMinName, row.capacity_blocks)->hits);
  }
  CHECK(report->Find(kMinName, 50)->hits == 19 * 50);
  CHECK(report->Find(kMinName, 99)->hits == 19 * 99);
}

TEST_CASE("Simulate: min is what the best choice hits, for ids in any order", "[unit]") {
  std::uint64_t compared = 0;
  for (std::uint64_t seed = 1; compared < 150; ++seed) {
    test::Random random(seed);
    const BlockTrace trace(RandomIds(random, 8, 3, 4));
    if (trace.blocks() == 0 || trace.distinct() > 9) continue;
    const int capacity = 1 + static_cast<int>(random.Below(trace.distinct()));
    INFO("seed " << seed << ", capacity " << capacity);
    const std::uint64_t best = BestHits(trace, capacity);
    CHECK(SimulateMin(trace, static_cast<std::uint32_t>(capacity)) == best);
    for (const policy::PolicyKind kind : policy::kAllPolicies) CHECK(HitsOf(trace, kind, static_cast<std::uint32_t>(capacity)) <= best);
    ++compared;
  }
}

TEST_CASE("Simulate: neither a policy nor any choice of admissions and evictions exceeds min", "[unit]") {
  for (std::uint64_t seed = 1; seed <= 120; ++seed) {
    test::Random random(seed);
    const BlockTrace trace(RandomIds(random, 150, 2 + random.Below(4), 1 + random.Below(9)));
    if (trace.blocks() == 0) continue;
    for (int n = 0; n < 3; ++n) {
      const auto capacity = static_cast<std::uint32_t>(1 + random.Below(trace.distinct()));
      INFO("seed " << seed << ", capacity " << capacity << " of " << trace.distinct());
      const std::uint64_t most = SimulateMin(trace, capacity);
      CHECK(most <= trace.ReusedBlocks());
      CHECK(RandomChoiceHits(trace, capacity, random) <= most);
      for (const policy::PolicyKind kind : policy::kAllPolicies) {
        INFO(policy::PolicyName(kind));
        CHECK(HitsOf(trace, kind, capacity) <= most);
      }
    }
    CHECK(SimulateMin(trace, trace.distinct()) == trace.ReusedBlocks());
  }
}

TEST_CASE("Simulate: a block is identified by its id and all ids before it", "[unit]") {
  SimulateOptions options;
  options.policies = {"lru", "min"};
  options.capacities = {99};
  const Result<SimulateReport> report = Simulate(options, Requests({{7, 7, 7, 7}, {7, 7, 7, 7}, {7, 7}, {7, 7, 7, 7, 7, 7}, {8, 7}}));
  KVM_REQUIRE_OK(report);
  CHECK(report->distinct_blocks == 8);
  CHECK(report->reused_blocks == 10);
  CHECK(report->Find("lru", 99)->hits == 10);
  CHECK(report->Find("min", 99)->hits == 10);

  const BlockTrace trace(Requests({{1, 2}, {2, 1}, {1, 2, 1}}));
  CHECK(std::vector<std::uint32_t>(trace[0].begin(), trace[0].end()) == std::vector<std::uint32_t>{0, 1});
  CHECK(std::vector<std::uint32_t>(trace[1].begin(), trace[1].end()) == std::vector<std::uint32_t>{2, 3});
  CHECK(std::vector<std::uint32_t>(trace[2].begin(), trace[2].end()) == std::vector<std::uint32_t>{0, 1, 4});
}
