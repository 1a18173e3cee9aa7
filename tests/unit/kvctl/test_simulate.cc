// kvctl simulate: MIN is the optimum, the policies' figures on the conversation trace, and hit
// density against LRU on what it has not seen.
#include "client/kvctl/simulate/simulate.h"
#include "client/kvctl/simulate/simulated_cache.h"
#include "client/kvctl/workload/block_trace.h"
#include "client/kvctl/workload/workload.h"
#include "daemon/policy/policies.h"
#include "tests/catch.h"
#include "tests/support/data/conversation_trace.h"
#include "tests/support/data/small_traces.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;
using policy::PolicyKind;
using test::BestHits;
using test::HitsOf;
using test::RandomPrefixes;
using test::Requests;

}  // namespace

TEST_CASE("Simulate: MIN hits as much as any choice can", "[unit]") {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    const BlockTrace trace(RandomPrefixes(seed, 9, 9));
    for (const int capacity : {1, 2, 3, 5}) {
      INFO("seed " << seed << ", capacity " << capacity);
      CHECK(SimulateMin(trace, static_cast<std::uint32_t>(capacity)) == BestHits(trace, capacity));
    }
  }
}

TEST_CASE("Simulate: no policy hits more than MIN, and all hit all reuse where everything fits", "[unit]") {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    const BlockTrace trace(RandomPrefixes(seed, 2000, 1500));
    for (const std::uint32_t capacity : {1u, 10u, 75u, 300u, trace.distinct()}) {
      INFO("seed " << seed << ", capacity " << capacity << " of " << trace.distinct());
      const std::uint64_t most = SimulateMin(trace, capacity);
      for (const PolicyKind kind : policy::kAllPolicies) {
        INFO(policy::PolicyName(kind));
        const std::uint64_t hits = HitsOf(trace, kind, capacity);
        CHECK(hits <= most);
        if (capacity == trace.distinct()) CHECK(hits == trace.ReusedBlocks());
      }
    }
    CHECK(SimulateMin(trace, trace.distinct()) == trace.ReusedBlocks());
  }
}

TEST_CASE("Simulate: hit density's ratio is never more than 0.003 below LRU's on generated workloads", "[unit]") {
  double sum = 0;
  for (const Workload workload : {Workload::kChat, Workload::kRag, Workload::kAgents}) {
    for (const std::uint64_t seed : {11, 12, 13}) {
      for (const std::uint32_t block_tokens : {128u, 512u}) {
        const BlockTrace trace(GenerateWorkload({workload, seed, seed == 11 ? 4000u : 1000u, block_tokens}));
        for (const std::uint64_t percent : kDefaultPercents) {
          const auto capacity = static_cast<std::uint32_t>(std::max<std::uint64_t>(1, trace.distinct() * percent / 100));
          INFO(WorkloadName(workload) << " seed " << seed << ", blocks of " << block_tokens << ", " << percent << " %");
          const auto lru = static_cast<double>(HitsOf(trace, PolicyKind::kLru, capacity));
          const auto ours = static_cast<double>(HitsOf(trace, PolicyKind::kHitDensity, capacity));
          const auto blocks = static_cast<double>(trace.blocks());
          CHECK(ours / blocks >= lru / blocks - 0.003);
          sum += (ours - lru) / blocks;
        }
      }
    }
  }
  CHECK(sum > 0);
}

TEST_CASE("Simulate: loops, scans and changing patterns do not put hit density below LRU", "[unit]") {
  std::vector<std::vector<std::uint64_t>> loop, scan, phases;
  test::Random random(3);
  for (std::uint64_t i = 0; i < 6000; ++i) {
    std::vector<std::uint64_t> chain, once, here;
    for (std::uint64_t j = 0; j < 10; ++j) {
      chain.push_back((i % 400) * 10 + j);
      once.push_back(i * 10 + j);
    }
    // Recency, then a loop, then recency again.
    const std::uint64_t from = i / 2000 == 1 ? 500'000 + (i % 150) * 10 : 1'000'000 + (i / 20 + random.Below(4)) * 10;
    for (std::uint64_t j = 0; j < 8; ++j) here.push_back(from + j);
    loop.push_back(chain);
    scan.push_back(once);
    phases.push_back(here);
  }
  for (const auto& ids : {loop, scan, phases}) {
    const BlockTrace trace(Requests(ids));
    for (const std::uint64_t percent : kDefaultPercents) {
      const auto capacity = static_cast<std::uint32_t>(std::max<std::uint64_t>(1, trace.distinct() * percent / 100));
      const auto lru = static_cast<double>(HitsOf(trace, PolicyKind::kLru, capacity));
      const auto ours = static_cast<double>(HitsOf(trace, PolicyKind::kHitDensity, capacity));
      INFO("capacity " << capacity << ": " << ours << " hits, LRU " << lru);
      CHECK(ours >= lru - 0.003 * static_cast<double>(trace.blocks()));
    }
  }
}

TEST_CASE("Simulate: the conversation trace gives the known figures, and hit density closes its part of the gap", "[unit]") {
  const std::string path = test::ConversationTrace();
  if (path.empty()) KVM_SKIP("no conversation trace: set KVM_TRACE");
  SimulateOptions options;
  options.trace = path;
  const Result<std::vector<Request>> requests = LoadRequests(options);
  KVM_REQUIRE_OK(requests);
  const Result<SimulateReport> report = Simulate(options, *requests);
  KVM_REQUIRE_OK(report);
  REQUIRE(report->distinct_blocks == 182'790);
  struct Expected {
    std::uint64_t capacity;
    double lru, s3_fifo, min, least_gap;
  };
  for (const Expected& expected : {Expected{1827, 0.0525, 0.1049, 0.2464, 0.30}, Expected{3655, 0.0793, 0.1415, 0.3142, 0.30},
                                   Expected{9139, 0.1958, 0.2088, 0.3664, 0.15}, Expected{18'279, 0.2789, 0.2518, 0.3664, 0.15},
                                   Expected{36'558, 0.3453, 0.3080, 0.3664, 0.0}}) {
    INFO("capacity " << expected.capacity);
    const auto ratio = [&](std::string_view policy) { return report->Ratio(report->Find(policy, expected.capacity)->hits); };
    CHECK(ratio("lru") == Approx(expected.lru).margin(0.00005));
    CHECK(ratio("s3-fifo") == Approx(expected.s3_fifo).margin(0.00005));
    CHECK(ratio("min") == Approx(expected.min).margin(0.00005));
    CHECK(ratio("hit-density") > std::max(ratio("lru"), ratio("s3-fifo")));
    CHECK(ratio("hit-density") - ratio("lru") >= expected.least_gap * (ratio("min") - ratio("lru")));
  }
}

TEST_CASE("Simulate: rows are by capacity and policy, each once, and what is wrong is named", "[unit]") {
  const std::vector<Request> requests = Requests({{1, 2, 3}, {1, 2, 4}, {1, 2, 3}});
  SimulateOptions options;
  options.policies = {"min", "lru", "min"};
  options.capacities = {3, 2, 3, 1000};
  const Result<SimulateReport> report = Simulate(options, requests);
  KVM_REQUIRE_OK(report);
  CHECK(report->requests == 3);
  CHECK(report->blocks == 9);
  CHECK(report->distinct_blocks == 4);
  CHECK(report->reused_blocks == 5);
  std::vector<std::pair<std::uint64_t, std::string>> rows;
  for (const SimulatedRow& row : report->rows) rows.emplace_back(row.capacity_blocks, row.policy);
  CHECK(rows ==
        std::vector<std::pair<std::uint64_t, std::string>>{{2, "lru"}, {2, "min"}, {3, "lru"}, {3, "min"}, {1000, "lru"}, {1000, "min"}});
  CHECK(report->Find("lru", 1000)->hits == 5);
  CHECK(report->Find("lru", 2)->hits == 4);

  options.policies = {"lru", "clock"};
  KVM_CHECK_ERROR(Simulate(options, requests), Errc::kInvalidArgument, "--policy: unknown policy clock");
  options.policies = {"all"};
  options.capacities = {0};
  KVM_CHECK_ERROR(Simulate(options, requests), Errc::kInvalidArgument, "--capacity-blocks");
  options.capacities.clear();
  KVM_CHECK_ERROR(Simulate(options, Requests({{}})), Errc::kInvalidArgument, "no request has a block");
  options.workload = "chat";
  options.trace = "x";
  KVM_CHECK_ERROR(LoadRequests(options), Errc::kInvalidArgument, "--trace or --workload");
}
