// kvctl simulate and replay on trace files as a user has them: both understand ids alike,
// compressed and long ones are read, what is no trace is told, and --paced follows timestamps.
#include <signal.h>

#include <algorithm>

#include "tests/catch.h"
#include "tests/support/data/random.h"
#include "tests/support/kvmd/kvctl_children.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/kvmd/kvmd_process.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::Eventually;
using test::Number;
using test::Sandbox;

constexpr const char* kReplay = "replay --json --private --backend host --workers 1 --in-order --block-bytes 64 ";

std::string Line(const std::vector<std::uint64_t>& ids, std::uint64_t block_tokens, const std::string& timestamp = "") {
  std::string line = "{" + (timestamp.empty() ? "" : "\"timestamp\": " + timestamp + ", ") +
                     "\"input_length\": " + std::to_string(ids.size() * block_tokens) + ", \"hash_ids\": [";
  for (std::size_t i = 0; i < ids.size(); ++i) line += (i == 0 ? "" : ",") + std::to_string(ids[i]);
  return line + "]}\n";
}

// Requests of this many ids out of a few, which name content and not prefixes.
std::string UnchainedTrace(std::size_t requests, std::uint64_t seed) {
  test::Random random(seed);
  std::string text;
  for (std::size_t n = 0; n < requests; ++n) {
    std::vector<std::uint64_t> ids(1 + random.Below(6));
    for (std::uint64_t& id : ids) id = random.Below(7);
    text += Line(ids, 16);
  }
  return text;
}

std::int64_t Simulated(const Sandbox& sandbox, const std::string& arguments) {
  const Sandbox::Output output = sandbox.Run("simulate --json --policy lru " + arguments);
  INFO(output.err);
  REQUIRE(output.code == 0);
  return Number(output.Json().at(0), "hits");
}

}  // namespace

TEST_CASE("kvctl: simulate and replay understand ids of single blocks alike", "[integration]") {
  const Sandbox sandbox;
  for (const std::uint64_t seed : {1, 2}) {
    const std::string trace = " --block-tokens 16 --trace " + sandbox.Write("unchained.jsonl", UnchainedTrace(400, seed)).string();
    for (const char* const capacity : {"20", "100", "100000"}) {
      INFO("seed " << seed << ", capacity " << capacity);
      const Sandbox::Output replayed = sandbox.Run(kReplay + trace + " --policy lru --pool-blocks " + capacity);
      INFO(replayed.err);
      REQUIRE(replayed.code == 0);
      const boost::json::value report = replayed.Json();
      CHECK(Number(report, "blocks_hit") == Simulated(sandbox, trace + " --capacity-blocks " + capacity));
      CHECK(Number(report, "blocks_hit_without_sharing") == Number(report, "blocks_hit"));
      CHECK(Number(report, "mismatched_blocks") == 0);
    }
  }
}

TEST_CASE("kvctl: prompts of a million tokens of 16 a block are simulated and replayed", "[integration]") {
  const Sandbox sandbox;
  std::vector<std::uint64_t> ids(62'500);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = 1'000'000'000 + i;
  const std::string trace = " --block-tokens 16 --trace " + sandbox.Write("long.jsonl", Line(ids, 16) + Line(ids, 16)).string();
  CHECK(Simulated(sandbox, trace + " --capacity-blocks 70000") == 62'500);
  const Sandbox::Output replayed = sandbox.Run(kReplay + trace + " --pool-blocks 70000");
  INFO(replayed.err);
  REQUIRE(replayed.code == 0);
  CHECK(Number(replayed.Json(), "blocks_hit") == 62'500);
  CHECK(Number(replayed.Json(), "mismatched_blocks") == 0);
}

TEST_CASE("kvctl: a trace may be compressed, and may come from standard input", "[integration]") {
  const Sandbox sandbox;
  const std::string path = sandbox.Write("t.jsonl", UnchainedTrace(100, 5)).string(),
                    options = "--block-tokens 16 --capacity-blocks 40 --trace ";
  const std::int64_t hits = Simulated(sandbox, options + path);
  CHECK(Simulated(sandbox, options + "- <" + path) == hits);
  REQUIRE(::system(("gzip -k " + path).c_str()) == 0);
  CHECK(Simulated(sandbox, options + path + ".gz") == hits);
  CHECK(Simulated(sandbox, options + "- <" + path + ".gz") == hits);
  const Sandbox::Output replayed = sandbox.Run(std::string(kReplay) + "--block-tokens 16 --pool-blocks 40 --trace " + path + ".gz");
  INFO(replayed.err);
  REQUIRE(replayed.code == 0);
  CHECK(Number(replayed.Json(), "blocks_hit") == hits);
}

TEST_CASE("kvctl: files that are no traces exit 1 with one line that says what can be read and what is missing", "[integration]") {
  const Sandbox sandbox;
  const auto refused = [&](const std::string& name, const std::string& text, const std::string& with) {
    const std::string path = sandbox.Write(name, text).string();
    for (const char* const command : {"simulate", "replay --private"}) {
      const Sandbox::Output output = sandbox.Run(std::string(command) + " --trace " + path);
      INFO(name << ": " << output.err);
      CHECK(output.code == 1);
      CHECK(output.out.empty());
      CHECK(std::count(output.err.begin(), output.err.end(), '\n') == 1);
      CHECK(output.err.find(path + ":1: ") != std::string::npos);
      CHECK(output.err.find(with) != std::string::npos);
    }
  };
  refused("azure.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n", "have no block ids");
  refused("burst.csv", "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n",
          "have no block ids");
  refused("sharegpt.json", "[\n {\"id\": \"x\", \"conversations\": []}\n]\n", "have no block ids");
  refused("lengths.jsonl", "{\"input_length\": 5, \"output_length\": 7}\n", "\"hash_ids\" is missing");
  refused("qwen.jsonl", Line({1, 2}, 16), "--block-tokens");
}

TEST_CASE("kvctl replay --paced: requests are sent no sooner than their timestamps say", "[integration]") {
  const Sandbox sandbox;
  std::string text;
  for (const char* const time : {"61.0", "61.1", "61.35", "61.2", "61.5"}) text += Line({1, 2, 3}, 16, time);
  const std::string trace = " --private --backend host --block-tokens 16 --trace " + sandbox.Write("timed.jsonl", text).string();
  for (const char* const order : {"", " --in-order"}) {
    INFO(order);
    const Sandbox::Output output = sandbox.Run("replay --json --paced --speed 2 --workers 2" + trace + order);
    INFO(output.err);
    REQUIRE(output.code == 0);
    const boost::json::value report = output.Json();
    CHECK(report.at("paced").as_bool());
    CHECK(report.at("wall_s").to_number<double>() >= 0.25);
    CHECK(Number(report.at("late_ms"), "count") == 5);
    CHECK(Number(report, "requests") == 5);
    CHECK(Number(report, "mismatched_blocks") == 0);
  }
  CHECK(sandbox.Run("replay --json --workers 1" + trace).Json().at("paced").as_bool() == false);
}

TEST_CASE("kvctl replay --paced: without timestamps, and a speed without it, are refused by name", "[integration]") {
  const Sandbox sandbox;
  const std::string trace = " --private --block-tokens 16 --trace " + sandbox.Write("t.jsonl", Line({1}, 16, "5") + Line({1}, 16)).string();
  const Sandbox::Output untimed = sandbox.Run("replay --paced" + trace);
  CHECK(untimed.code == 1);
  CHECK(untimed.err.find("t.jsonl:2: \"timestamp\" is missing, and --paced follows it") != std::string::npos);
  const Sandbox::Output unpaced = sandbox.Run("replay --speed 2" + trace);
  CHECK(unpaced.code == 1);
  CHECK(unpaced.err.find("--paced") != std::string::npos);
  CHECK(sandbox.Run("replay --paced --speed 0" + trace).code == 1);
}

TEST_CASE("kvctl replay --paced: an interrupt ends the wait for a request that is due much later", "[integration]") {
  for (const char* const order : {"--in-order", "--no-publish-imported"}) {
    INFO(order);
    const Sandbox sandbox;
    const std::string path = sandbox.Write("t.jsonl", Line({1}, 16, "0") + Line({1}, 16, "3600000")).string();
    ctl::ChildProcess replay = test::StartKvctl(
        sandbox, {"replay", "--paced", "--private", "--backend", "host", "--workers", "1", "--block-tokens", "16", "--trace", path, order});
    REQUIRE(Eventually([&] { return test::ChildrenOf(replay.pid(), "replay-worker").size() == 1; }, 40s));
    ::kill(replay.pid(), SIGINT);
    REQUIRE(replay.WaitFor(20s));
    CHECK(replay.Ending() == "exited with 130");
    CHECK(sandbox.NothingLeft());
  }
}
