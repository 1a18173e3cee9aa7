// Trace files: what a good line means, and that a bad one is named with file and line.
#include "client/kvctl/workload/trace.h"
#include "tests/catch.h"
#include "tests/support/data/trace_source.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

Result<std::vector<Request>> Parse(const std::string& text, TraceOptions options = {}) {
  return ParseTrace(test::BytesOf(text), "t.jsonl", options);
}

std::string ErrorOf(const std::string& text) {
  const auto requests = Parse(text);
  REQUIRE_FALSE(requests.has_value());
  CHECK(requests.error().code == Errc::kInvalidArgument);
  return requests.error().message;
}

constexpr const char* kGood = R"({"timestamp": 27, "input_length": 1030, "output_length": 7, "hash_ids": [4, 5, 9]})";

}  // namespace

TEST_CASE("Trace: a line becomes a request, empty lines and unknown members are skipped", "[unit]") {
  const auto requests = Parse(std::string(kGood) + "\n\n" +
                              R"({"x": {}, "timestamp": 30.0, "input_length": 1, "output_length": 0, "hash_ids": [0]})" + "\r\n");
  REQUIRE(requests.has_value());
  REQUIRE(requests->size() == 2);
  CHECK(requests->at(0).input_tokens == 1030);
  CHECK(requests->at(0).output_tokens == 7);
  CHECK(requests->at(0).hash_ids == std::vector<std::uint64_t>{4, 5, 9});
  CHECK(requests->at(1).hash_ids == std::vector<std::uint64_t>{0});
}

TEST_CASE("Trace: a partly filled last block may be left out", "[unit]") {
  CHECK(Parse(R"({"timestamp": 0, "input_length": 1030, "output_length": 7, "hash_ids": [4, 5]})").has_value());
}

TEST_CASE("Trace: reading stops at the limit, before lines that are broken", "[unit]") {
  TraceOptions options;
  options.limit_requests = 1;
  const auto requests = Parse(std::string(kGood) + "\nnonsense\n", options);
  REQUIRE(requests.has_value());
  CHECK(requests->size() == 1);
}

TEST_CASE("Trace: a broken line is reported with file, line and what is wrong", "[unit]") {
  const std::string good = std::string(kGood) + "\n";
  const auto starts = [](const std::string& message, const std::string& with) { return message.rfind(with, 0) == 0; };
  CHECK(starts(ErrorOf(good + "{\"timestamp\": 0,\n"), "t.jsonl:2: not valid JSON"));
  CHECK(starts(ErrorOf(good + "[1]\n"), "t.jsonl:2: not a JSON object"));
  CHECK(starts(ErrorOf(good + "\n7\n"), "t.jsonl:3: not a JSON object"));
  CHECK(starts(ErrorOf(good + good.substr(0, good.size() - 1) + " 7"), "t.jsonl:2: not valid JSON"));
  CHECK(ErrorOf(R"({"input_length": 5, "hash_ids": [[3]]})") == "t.jsonl:1: hash_ids[0] is not a number");
  CHECK(ErrorOf(R"({"input_length": 600, "hash_ids": [3, null]})") == "t.jsonl:1: hash_ids[1] is not a number");
  CHECK(ErrorOf(R"({"input_length": 5, "hash_ids": [1e20]})") == "t.jsonl:1: hash_ids[0] is not a whole number");
  CHECK(ErrorOf(good + good + R"({"timestamp": 0, "output_length": 7, "hash_ids": []})") == "t.jsonl:3: \"input_length\" is missing");
  CHECK(starts(ErrorOf(R"({"timestamp": 0, "input_length": 5, "output_length": 7})"), "t.jsonl:1: \"hash_ids\" is missing"));
  CHECK(ErrorOf(R"({"timestamp": 0, "input_length": 5, "output_length": 7, "hash_ids": 3})") == "t.jsonl:1: \"hash_ids\" is not an array");
  CHECK(ErrorOf(R"({"timestamp": 0, "input_length": -5, "output_length": 7, "hash_ids": [3]})") ==
        "t.jsonl:1: \"input_length\" is negative: -5");
  CHECK(ErrorOf(R"({"timestamp": 0, "input_length": 5, "output_length": 7, "hash_ids": [-1]})") ==
        "t.jsonl:1: hash_ids[0] is negative: -1");
  CHECK(ErrorOf(R"({"timestamp": 0, "input_length": 5.5, "output_length": 7, "hash_ids": [3]})") ==
        "t.jsonl:1: \"input_length\" is not a whole number");
  CHECK(ErrorOf(R"({"timestamp": 0, "input_length": 0, "output_length": 7, "hash_ids": []})") == "t.jsonl:1: \"input_length\" is 0");
}

TEST_CASE("Trace: absurd numbers are refused", "[unit]") {
  CHECK(ErrorOf(R"({"timestamp": 0, "input_length": 99999999999, "output_length": 7, "hash_ids": [3]})") ==
        "t.jsonl:1: \"input_length\" is 99999999999, the limit is 64000000");
  CHECK(ErrorOf(R"({"timestamp": 0, "input_length": 1e300, "output_length": 7, "hash_ids": [3]})") ==
        "t.jsonl:1: \"input_length\" is not a whole number");
  CHECK(ErrorOf(R"({"timestamp": 0, "input_length": 5000, "output_length": 7, "hash_ids": [3]})") ==
        "t.jsonl:1: \"hash_ids\" has 1 blocks, an input_length of 5000 needs 10 of 512 tokens: --block-tokens has to be the trace's "
        "block size; 4096 would fit this line");
}

TEST_CASE("Trace: a file without requests, or without a file, is an error", "[unit]") {
  CHECK(ErrorOf("") == "t.jsonl: no requests in this file");
  CHECK(ErrorOf("\n \n") == "t.jsonl: no requests in this file");
  const auto missing = ReadTrace("/nonexistent/trace.jsonl", {});
  REQUIRE_FALSE(missing.has_value());
  CHECK(missing.error().code == Errc::kNotFound);
  CHECK(missing.error().message == "open /nonexistent/trace.jsonl");
}
