// Generated workloads: deterministic, well-formed, and with the reuse they are made for.
#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "client/kvctl/workload/workload.h"
#include "tests/catch.h"

namespace {

using namespace kvm::ctl;

WorkloadOptions Options(Workload workload, std::uint64_t seed = 7, std::size_t requests = 600) {
  WorkloadOptions options;
  options.workload = workload;
  options.seed = seed;
  options.requests = requests;
  return options;
}

// Share of blocks that an unbounded, shared cache would hit.
double Reuse(const std::vector<Request>& requests) {
  std::unordered_set<std::uint64_t> seen;
  double hits = 0, total = 0;
  for (const Request& request : requests) {
    bool leading = true;
    for (const std::uint64_t id : request.hash_ids) {
      leading = leading && seen.contains(id);
      hits += leading ? 1 : 0;
      total += 1;
    }
    seen.insert(request.hash_ids.begin(), request.hash_ids.end());
  }
  return hits / total;
}

bool Same(const std::vector<Request>& a, const std::vector<Request>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].timestamp_us != b[i].timestamp_us || a[i].input_tokens != b[i].input_tokens || a[i].hash_ids != b[i].hash_ids) return false;
  }
  return true;
}

constexpr Workload kAll[] = {Workload::kChat, Workload::kRag, Workload::kAgents};

}  // namespace

TEST_CASE("Workload: the same seed gives the same requests, another seed others", "[unit]") {
  for (const Workload workload : kAll) {
    INFO(WorkloadName(workload));
    CHECK(Same(GenerateWorkload(Options(workload)), GenerateWorkload(Options(workload))));
    CHECK_FALSE(Same(GenerateWorkload(Options(workload)), GenerateWorkload(Options(workload, 8))));
  }
}

TEST_CASE("Workload: every request has one id per block and lies within the limits of a trace", "[unit]") {
  for (const Workload workload : kAll) {
    INFO(WorkloadName(workload));
    const auto requests = GenerateWorkload(Options(workload));
    REQUIRE(requests.size() == 600);
    std::uint64_t previous_us = 0;
    for (const Request& request : requests) {
      REQUIRE(request.input_tokens > 0);
      REQUIRE(request.input_tokens <= kMaxRequestTokens);
      REQUIRE(request.hash_ids.size() == (request.input_tokens + 511) / 512);
      REQUIRE(request.hash_ids.size() <= kMaxRequestBlocks);
      REQUIRE(request.timestamp_us >= previous_us);
      previous_us = request.timestamp_us;
    }
  }
}

TEST_CASE("Workload: block ids are prefix-chained: an id always follows the same one", "[unit]") {
  for (const Workload workload : kAll) {
    INFO(WorkloadName(workload));
    std::unordered_map<std::uint64_t, std::uint64_t> parent_of;
    for (const Request& request : GenerateWorkload(Options(workload))) {
      std::uint64_t parent = 0;
      for (const std::uint64_t id : request.hash_ids) {
        REQUIRE(parent_of.emplace(id, parent).first->second == parent);
        parent = id;
      }
    }
  }
}

TEST_CASE("Workload: each kind has prefixes to reuse, and not only those", "[unit]") {
  const double chat = Reuse(GenerateWorkload(Options(Workload::kChat)));
  const double rag = Reuse(GenerateWorkload(Options(Workload::kRag)));
  const double agents = Reuse(GenerateWorkload(Options(Workload::kAgents)));
  CAPTURE(chat, rag, agents);
  CHECK(chat > 0.4);
  CHECK(rag > 0.1);
  CHECK(agents > 0.6);
  CHECK(std::max({chat, rag, agents}) < 0.97);
}

TEST_CASE("Workload: asking for more requests leaves the first ones as they are", "[unit]") {
  for (const Workload workload : kAll) {
    const auto few = GenerateWorkload(Options(workload, 7, 10)), many = GenerateWorkload(Options(workload, 7, 50));
    CHECK(Same(few, {many.begin(), many.begin() + 10}));
  }
}

TEST_CASE("Workload: names map both ways", "[unit]") {
  for (const Workload workload : kAll) CHECK(WorkloadFromName(WorkloadName(workload)) == workload);
  CHECK_FALSE(WorkloadFromName("batch").has_value());
}
