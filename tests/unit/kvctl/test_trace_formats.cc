// Traces as people have them: what may be missing, what time is written in, how long a prompt may
// be, compressed files, and what is said of files that are no traces.
#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "client/kvctl/workload/trace.h"
#include "tests/catch.h"
#include "tests/support/data/trace_source.h"
#include "tests/support/kvmd/kvctl_sandbox.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

Result<std::vector<Request>> Parse(const std::string& text, const TraceOptions& options = {}) {
  return ParseTrace(test::BytesOf(text), "t", options);
}

TraceOptions Sixteen(std::optional<TimestampUnit> timestamps = std::nullopt) {
  TraceOptions options;
  options.block_tokens = 16;
  options.timestamps = timestamps;
  return options;
}

// Of requests of one block each, with these timestamps as they are written.
Result<std::vector<std::uint64_t>> Times(const std::vector<std::string>& written, TimestampUnit unit) {
  std::string text;
  for (const std::string& time : written) text += R"({"timestamp": )" + time + R"(, "input_length": 16, "hash_ids": [1]})" + "\n";
  const auto requests = Parse(text, Sixteen(unit));
  if (!requests) return requests.error();
  std::vector<std::uint64_t> times;
  for (const Request& request : *requests) times.push_back(request.timestamp_us);
  return times;
}

std::string Ids(std::size_t count) {
  std::string ids = "[";
  for (std::size_t i = 0; i < count; ++i) ids += (i == 0 ? "" : ",") + std::to_string(i);
  return ids + "]";
}

void WriteGz(const std::string& path, const std::string& text) {
  gzFile file = ::gzopen(path.c_str(), "wb");
  REQUIRE(file != nullptr);
  REQUIRE(::gzwrite(file, text.data(), static_cast<unsigned>(text.size())) == static_cast<int>(text.size()));
  REQUIRE(::gzclose(file) == Z_OK);
}

std::string ErrorOf(const std::string& text, const TraceOptions& options = {}) {
  const auto requests = Parse(text, options);
  REQUIRE_FALSE(requests.has_value());
  CHECK(requests.error().code == Errc::kInvalidArgument);
  CHECK(requests.error().message.find('\n') == std::string::npos);
  return requests.error().message;
}

bool Contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("Trace: a line of Qwen-Bailian's trace is read", "[unit]") {
  const auto requests =
      Parse(R"({"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 521, "output_length": 132, "type": "text", )"
            R"("turn": 1, "hash_ids": [1089, 1090, 1091, 6326, 1089, 1090, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, )"
            R"(19, 20, 21, 22, 23, 24, 25, 26, 27]})",
            Sixteen());
  KVM_REQUIRE_OK(requests);
  CHECK(requests->at(0).input_tokens == 521);
  CHECK(requests->at(0).output_tokens == 132);
  CHECK(requests->at(0).hash_ids.size() == 33);
}

TEST_CASE("Trace: timestamp and output_length may be missing, null or, where time is not asked for, of any kind", "[unit]") {
  for (const char* const line :
       {R"({"input_length": 16, "hash_ids": [1]})", R"({"timestamp": null, "output_length": null, "input_length": 16, "hash_ids": [1]})",
        R"({"timestamp": "2023-11-16 18:17:03.9799600", "input_length": 16, "hash_ids": [1]})",
        R"({"timestamp": -3.5, "input_length": 16.0, "hash_ids": [1], "prompt": {"hash_ids": "x", "input_length": [0]}})",
        "\xEF\xBB\xBF{\"input_length\": 16, \"hash_ids\": [1]}\r"}) {
    INFO(line);
    const auto requests = Parse(line, Sixteen());
    KVM_REQUIRE_OK(requests);
    CHECK(requests->at(0).input_tokens == 16);
    CHECK(requests->at(0).hash_ids == std::vector<std::uint64_t>{1});
    CHECK(requests->at(0).timestamp_us == 0);
  }
}

TEST_CASE("Trace: timestamps are seconds if one has a fraction, else milliseconds, or what is said", "[unit]") {
  using Us = std::vector<std::uint64_t>;
  CHECK(Times({"0", "27052", "27053.0"}, TimestampUnit::kAuto).value() == Us{0, 27'052'000, 27'053'000});
  CHECK(Times({"0.0", "61", "61.114"}, TimestampUnit::kAuto).value() == Us{0, 61'000'000, 61'114'000});
  CHECK(Times({"0", "2.5"}, TimestampUnit::kMilliseconds).value() == Us{0, 2500});
  CHECK(Times({"3"}, TimestampUnit::kSeconds).value() == Us{3'000'000});
  CHECK(Times({"3"}, TimestampUnit::kMicroseconds).value() == Us{3});
}

TEST_CASE("Trace: if timestamps are read, a line without a valid one is named", "[unit]") {
  const std::string good = R"({"timestamp": 1, "input_length": 16, "hash_ids": [1]})"
                           "\n";
  const TraceOptions timed = Sixteen(TimestampUnit::kAuto);
  CHECK(Contains(ErrorOf(good + R"({"input_length": 16, "hash_ids": [1]})", timed), "t:2: \"timestamp\" is missing"));
  CHECK(ErrorOf(good + R"({"timestamp": "now", "input_length": 16, "hash_ids": [1]})", timed) == "t:2: \"timestamp\" is not a number");
  CHECK(ErrorOf(good + R"({"timestamp": -1, "input_length": 16, "hash_ids": [1]})", timed) == "t:2: \"timestamp\" is negative: -1");
  CHECK(
      Contains(ErrorOf(good + good + R"({"timestamp": 1e300, "input_length": 16, "hash_ids": [1]})", timed), "t:3: \"timestamp\" is more"));
}

TEST_CASE("Trace: a prompt of a million tokens is read at any block size", "[unit]") {
  for (const std::uint32_t block_tokens : {1u, 16u, 512u}) {
    INFO(block_tokens);
    TraceOptions options;
    options.block_tokens = block_tokens;
    const std::size_t blocks = (1'000'000 + block_tokens - 1) / block_tokens;
    const auto requests = Parse(R"({"input_length": 1000000, "hash_ids": )" + Ids(blocks) + "}", options);
    KVM_REQUIRE_OK(requests);
    CHECK(requests->at(0).hash_ids.size() == blocks);
    CHECK(requests->at(0).hash_ids.back() == blocks - 1);
  }
}

TEST_CASE("Trace: more blocks than the limit are counted and refused", "[unit]") {
  TraceOptions options;
  options.block_tokens = 1;
  const std::size_t count = kMaxRequestBlocks + 3;
  std::string ids(2 * count, ',');
  for (std::size_t i = 0; i < count; ++i) ids[2 * i] = '1';
  ids.back() = ']';
  CHECK(ErrorOf(R"({"input_length": )" + std::to_string(count) + R"(, "hash_ids": [)" + ids + "}", options) ==
        "t:1: \"hash_ids\" has 2097155 blocks, the limit is 2097152");
}

TEST_CASE("Trace: a number of ids that does not fit the length names --block-tokens, and a size that would", "[unit]") {
  const std::string message = ErrorOf(R"({"input_length": 32, "hash_ids": [1, 2]})");
  CHECK(Contains(message, "t:1: \"hash_ids\" has 2 blocks, an input_length of 32 needs 1 of 512 tokens: --block-tokens"));
  CHECK(Contains(message, "16 would fit"));
  CHECK_FALSE(Contains(ErrorOf(R"({"input_length": 5000, "hash_ids": []})"), "would fit"));
}

TEST_CASE("Trace: a line without end is refused, and at most the limit of it is kept", "[unit]") {
  std::size_t given = 0;
  LineReader reader(
      [&](std::span<char> into) -> Result<std::size_t> {
        std::fill(into.begin(), into.end(), 'x');
        given += into.size();
        return into.size();
      },
      1 << 20);
  std::string line;
  const Result<bool> next = reader.Next(line);
  KVM_CHECK_ERROR(next, Errc::kInvalidArgument, "line of more than 1048576 bytes");
  CHECK(line.size() == 1 << 20);
  CHECK(given < 2 << 20);
}

TEST_CASE("Trace: lines are the same wherever the source cuts them, the last one also without an end", "[unit]") {
  for (const std::size_t most : {1u, 3u, 7u, 4096u}) {
    LineReader reader(test::BytesOf("a\n\nbcdef\nlast", most), 5);
    std::vector<std::string> lines;
    for (std::string line; reader.Next(line).value();) lines.push_back(line);
    CHECK(lines == std::vector<std::string>{"a", "", "bcdef", "last"});
  }
}

TEST_CASE("Trace: a .gz is read like the file in it, and a damaged or cut one is named", "[unit]") {
  const test::Sandbox directory;
  const std::string path = directory.path() / "t.jsonl.gz";
  std::string text;
  for (int i = 0; i < 3000; ++i)
    text += R"({"input_length": 1000, "hash_ids": [)" + std::to_string(i) + ", " + std::to_string(7 * i) + "]}\n";
  WriteGz(path, text);
  const auto packed = ReadTrace(path, {}), plain = Parse(text);
  KVM_REQUIRE_OK(packed);
  KVM_REQUIRE_OK(plain);
  REQUIRE(packed->size() == 3000);
  for (std::size_t i = 0; i < packed->size(); ++i) REQUIRE(packed->at(i).hash_ids == plain->at(i).hash_ids);

  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  KVM_CHECK_ERROR(ReadTrace(path, {}), Errc::kInvalidArgument, "cut off");
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(40);
  file.write("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 12);
  file.close();
  KVM_CHECK_ERROR(ReadTrace(path, {}), Errc::kInvalidArgument, path);
  KVM_CHECK_ERROR(ReadTrace(directory.path(), {}), Errc::kInvalidArgument, "is a directory");
}

TEST_CASE("Trace: the error for a file of another format says in one line what can be read and what is missing", "[unit]") {
  for (const auto& [text, says] : std::vector<std::pair<std::string, std::string>>{
           {"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n", "CSV"},
           {"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n", "CSV"},
           {"\n5,472,18\n", "CSV"},
           {R"([{"id": "x", "conversations": [{"from": "human", "value": "hi"}]}])", "ShareGPT"},
           {"[\n  {\n", "ShareGPT"},
           {std::string("\x93NUMPY\x01\x00v\x00", 10), "not text"},
           {"PAR1xxxx", "Parquet"}}) {
    INFO(text);
    const std::string message = ErrorOf(text);
    CHECK(Contains(message, says));
    CHECK(Contains(message, "\"hash_ids\""));
    CHECK(Contains(message, "Mooncake"));
  }
  CHECK(Contains(ErrorOf(R"({"id": "x", "conversations": []})"), "\"hash_ids\" is missing"));
  CHECK(Contains(ErrorOf("\x28\xB5\x2F\xFD\x04\x58"), "zstd"));
  CHECK(Contains(ErrorOf("\xFD"
                         "7zXZ"),
                 "--trace -"));
  CHECK(Contains(ErrorOf("{\n  \"input_length\": 5\n}\n"), "a line is one object"));
}

TEST_CASE("Trace: a JSON array in one line of any length is recognised", "[unit]") {
  std::size_t left = 80u << 20;
  bool first = true;
  const auto source = [&](std::span<char> into) -> Result<std::size_t> {
    const std::size_t count = std::min(into.size(), left);
    std::fill(into.begin(), into.begin() + static_cast<long>(count), ' ');
    if (std::exchange(first, false)) into[0] = '[';
    left -= count;
    return count;
  };
  KVM_CHECK_ERROR(ParseTrace(source, "t", {}), Errc::kInvalidArgument, "t:1: a JSON array");
}
