// kvctl replay by each eviction policy: one worker hits what kvctl simulate says, several never
// take a wrong block.
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "daemon/policy/policies.h"
#include "tests/catch.h"
#include "tests/support/data/conversation_trace.h"
#include "tests/support/kvmd/kvctl_sandbox.h"

namespace {

using namespace kvm;
using namespace kvm::test;

// For each policy and capacity both commands, as a user calls them.
void CheckThatBothAgree(const Sandbox& sandbox, const std::string& source, const std::vector<int>& capacities) {
  std::string list;
  for (const int capacity : capacities) list += (list.empty() ? "" : ",") + std::to_string(capacity);
  const Sandbox::Output simulated = sandbox.Run("simulate --json " + source + " --capacity-blocks " + list);
  INFO(simulated.err);
  REQUIRE(simulated.code == 0);
  const boost::json::value rows = simulated.Json();
  std::map<std::pair<std::string, std::int64_t>, std::int64_t> expected;
  for (const boost::json::value& row : rows.as_array())
    expected[{Text(row, "policy"), Number(row, "capacity_blocks")}] = Number(row, "hits");
  for (const policy::PolicyKind kind : policy::kAllPolicies) {
    const std::string name(policy::PolicyName(kind));
    for (const int capacity : capacities) {
      INFO(source << ": " << name << ", " << capacity << " blocks");
      const Sandbox::Output replayed = sandbox.Run("replay --json --private --backend host --workers 1 --in-order --block-bytes 64 " +
                                                   source + " --policy " + name + " --pool-blocks " + std::to_string(capacity));
      INFO(replayed.err);
      REQUIRE(replayed.code == 0);
      const boost::json::value report = replayed.Json();
      CHECK(Text(report, "policy") == name);
      CHECK(Number(report, "blocks_hit") == expected.at({name, capacity}));
      CHECK(Number(report, "blocks_hit_without_sharing") == Number(report, "blocks_hit"));
      CHECK(Number(report, "mismatched_blocks") == 0);
    }
  }
}

}  // namespace

TEST_CASE("kvctl replay: one worker hits exactly what kvctl simulate says, by every policy", "[integration]") {
  const Sandbox sandbox;
  CheckThatBothAgree(sandbox, "--workload chat --requests 200 --seed 4", {1, 30, 200, 100000});
  CheckThatBothAgree(sandbox, "--workload agents --requests 200 --seed 4", {60, 500});
  CHECK(sandbox.NothingLeft());
}

TEST_CASE("kvctl replay: one worker hits exactly what kvctl simulate says on the conversation trace", "[integration]") {
  const std::string trace = ConversationTrace();
  if (trace.empty()) KVM_SKIP("no conversation trace: set KVM_TRACE");
  const Sandbox sandbox;
  CheckThatBothAgree(sandbox, "--limit-requests 1000 --trace " + trace, {250, 1827});
}

TEST_CASE("kvctl replay: workers that share and whose pools keep parts of a prefix never take a wrong block", "[integration]") {
  const Sandbox sandbox;
  for (const policy::PolicyKind kind : policy::kAllPolicies) {
    const std::string name(policy::PolicyName(kind));
    for (const char* const order : {"--in-order", ""}) {
      INFO(name << ' ' << order);
      const Sandbox::Output output = sandbox.Run("replay --json --private --backend host --workload agents --requests 400 --workers 3 " +
                                                 std::string("--pool-blocks 150 --block-bytes 1024 --policy ") + name + ' ' + order);
      INFO(output.err);
      REQUIRE(output.code == 0);
      const boost::json::value report = output.Json();
      CHECK(Number(report, "requests") == 400);
      CHECK(Number(report, "mismatched_blocks") == 0);
      CHECK(Number(report, "evictions") > 0);
      CHECK(Number(report, "blocks_imported") > 0);
      CHECK(Number(report, "blocks_local") + Number(report, "blocks_imported") == Number(report, "blocks_hit"));
    }
  }
  CHECK(sandbox.Run("replay --private --workload chat --policy clock").code == 1);
  CHECK(sandbox.NothingLeft());
}

TEST_CASE("kvctl replay: with a host cache small pools hit more, and every block is right", "[integration]") {
  const Sandbox sandbox;
  const std::string replay =
      "replay --json --private --backend host --workload chat --requests 3000 --seed 4 --workers 2 --in-order "
      "--pool-blocks 300 --block-bytes 4096";
  const Sandbox::Output without = sandbox.Run(replay);
  REQUIRE(without.code == 0);
  CHECK(Number(without.Json(), "blocks_from_host_cache") == 0);
  CHECK(Number(without.Json(), "blocks_offloaded") == 0);
  for (const policy::PolicyKind kind : policy::kAllPolicies) {
    const std::string name(policy::PolicyName(kind));
    INFO(name);
    const Sandbox::Output with = sandbox.Run(replay + " --host-cache 64M --host-cache-policy " + name);
    INFO(with.err);
    REQUIRE(with.code == 0);
    const boost::json::value report = with.Json();
    CHECK(Text(report, "host_cache_policy") == name);
    CHECK(Number(report, "mismatched_blocks") == 0);
    CHECK(Number(report, "blocks_offloaded") > 0);
    CHECK(Number(report, "blocks_from_host_cache") > 0);
    CHECK(Number(report, "blocks_hit") > Number(without.Json(), "blocks_hit"));
  }
  const Sandbox::Output refused = sandbox.Run("replay --workload chat --host-cache 64M");
  CHECK(refused.code == 1);
  CHECK(refused.err.find("--private") != std::string::npos);
}

TEST_CASE("kvctl replay: equal prompts at one time are computed once, where workers wait for each other", "[integration]") {
  const Sandbox sandbox;
  std::string trace;
  for (int request = 0; request < 8; ++request) {
    trace += R"({"timestamp": 0, "input_length": 10240, "output_length": 1, "hash_ids": [)";
    for (int block = 1; block <= 20; ++block) trace += (block == 1 ? "" : ",") + std::to_string(block);
    trace += "]}\n";
  }
  const std::string path = sandbox.Write("equal.jsonl", trace).string();
  const std::string command =
      "replay --json --private --backend host --workers 4 --block-bytes 64 --prefill-takes-time "
      "--prefill-us-per-token 10 --trace " +
      path;
  const Sandbox::Output waiting = sandbox.Run(command + " --wait-computing-ms 60000");
  INFO(waiting.err);
  REQUIRE(waiting.code == 0);
  const boost::json::value report = waiting.Json();
  CHECK(Number(report, "blocks_computed") == 20);
  CHECK(Number(report, "mismatched_blocks") == 0);
  CHECK(Number(report, "computing_waits") > 0);
  CHECK(Number(report, "computing_waits_in_vain") == 0);
  const boost::json::value without = sandbox.Run(command).Json();
  CHECK(Number(without, "computing_waits") == 0);
  CHECK(Number(without, "mismatched_blocks") == 0);
}
