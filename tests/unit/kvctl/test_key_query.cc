// What operators type: tokens, model specs, shards, keys; and what is refused with which words.
#include <fstream>

#include "client/kvctl/views/key_query.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

ModelSpec Spec() {
  ModelSpec spec;
  spec.model_id = "org/model";
  spec.kv_dtype = "bfloat16";
  spec.layout = "NHD";
  spec.num_layers = 2;
  spec.num_kv_heads = 4;
  spec.head_size = 64;
  spec.block_tokens = 4;
  return spec;
}

std::vector<ModelEntry> Declared() { return {{3, Spec().ComputeFingerprint(), Spec()}}; }

std::string ErrorOf(const KeyQueryOptions& options) {
  const auto query = ResolveKeys(options, Declared());
  REQUIRE_FALSE(query.has_value());
  return query.error().message;
}

}  // namespace

TEST_CASE("Key query: token ids are read from commas, space and JSON arrays", "[unit]") {
  const std::vector<std::uint32_t> expected{1, 22, 333};
  for (const char* text : {"1,22,333", "1 22\n333\n", "[1, 22, 333]", "\t1,\r\n22 , 333"}) {
    INFO(text);
    const auto tokens = ParseTokens(text, "t");
    REQUIRE(tokens.has_value());
    CHECK(*tokens == expected);
  }
  CHECK(ParseTokens("", "t").error().message == "t: no token ids");
  CHECK(ParseTokens("1,x", "t").error().message == "t: not a token id: x");
  CHECK(ParseTokens("-1", "t").error().message == "t: not a token id: -1");
  CHECK(ParseTokens("1.5", "t").error().message == "t: not a token id: 1.5");
  CHECK(ParseTokens("4294967296", "t").error().message == "t: not a token id: 4294967296");
}

TEST_CASE("Key query: a model spec is read from JSON and from lines, with the same result", "[unit]") {
  const auto json = ParseModelSpec(
      R"({"model_id": "org/model", "kv_dtype": "bfloat16", "layout": "NHD", "num_layers": 2, "num_kv_heads": 4, "head_size": 64, "block_tokens": 4})",
      "f");
  const auto lines = ParseModelSpec(
      "# a comment\nmodel_id=org/model\nkv_dtype=bfloat16\nlayout=NHD\r\n\nnum_layers=2\nnum_kv_heads=4\nhead_size=64\nblock_tokens=4\n",
      "f");
  REQUIRE(json.has_value());
  REQUIRE(lines.has_value());
  CHECK(*json == Spec());
  CHECK(*lines == Spec());
}

TEST_CASE("Key query: a wrong model spec names file, line and field", "[unit]") {
  const auto message = [](const char* text) { return ParseModelSpec(text, "f").error().message; };
  CHECK(message("model_id=a\nhead_sizes=3\n") == "f:2: model spec: no field named head_sizes");
  CHECK(message("model_id\n") == "f:1: not name=value");
  CHECK(message("head_size=many\n") == "f:1: model spec: head_size is not a 32-bit number: many");
  CHECK(message("{\"model_id\": [1]}") == "f: model_id is neither text nor a whole number");
  CHECK(message("{\"model_id\": ").rfind("f: not valid JSON", 0) == 0);
  CHECK(message("model_id=a\n") == "f: model spec: kv_dtype is required");
}

TEST_CASE("Key query: a shard has two, four or five numbers", "[unit]") {
  CHECK(*ParseShard("1/2") == Shard{1, 2, 0, 1, 0});
  CHECK(*ParseShard("1/2/0/3") == Shard{1, 2, 0, 3, 0});
  CHECK(*ParseShard("0/1/0/1/4") == Shard{0, 1, 0, 1, 4});
  for (const char* text : {"", "1", "1/2/3", "0/1/0/1/0/0", "a/b", "2/2", "0/65536"}) {
    INFO(text);
    CHECK_FALSE(ParseShard(text).has_value());
  }
}

TEST_CASE("Key query: tokens of a declared model give the keys that a worker derives", "[unit]") {
  const std::vector<std::uint32_t> tokens{1, 2, 3, 4, 5, 6, 7, 8, 9};
  std::vector<BlockKey> expected;
  const ExtraKey extras[] = {{ExtraKey::Kind::kLora, "adapter"}, {ExtraKey::Kind::kCacheSalt, "pepper"}};
  KeyChain(Spec().ComputeFingerprint(), Shard{}, extras).Extend(tokens, 4, expected);
  REQUIRE(expected.size() == 2);
  KeyQueryOptions options;
  options.tokens = "1,2,3,4,5,6,7,8,9";
  options.lora = "adapter";
  options.salt = "pepper";
  for (const std::string& name : {std::string("org/model"), std::string("3"), Spec().ComputeFingerprint().ToHex().substr(0, 8)}) {
    options.model = name;
    const auto query = ResolveKeys(options, Declared());
    REQUIRE(query.has_value());
    CHECK(query->keys == expected);
  }
}

TEST_CASE("Key query: keys are taken as they are", "[unit]") {
  KeyQueryOptions options;
  options.keys = BlockKey{1, 2}.ToHex() + "," + BlockKey{3, 4}.ToHex();
  const auto query = ResolveKeys(options, {});
  REQUIRE(query.has_value());
  CHECK(query->keys == std::vector<BlockKey>{{1, 2}, {3, 4}});
  CHECK_FALSE(query->spec.has_value());
}

TEST_CASE("Key query: options that contradict each other are named", "[unit]") {
  KeyQueryOptions options;
  CHECK(ErrorOf(options) == "give exactly one of --keys, --tokens and --tokens-file");
  options.tokens = "1,2,3";
  CHECK(ErrorOf(options) == "tokens need exactly one of --model-spec, --fingerprint and --model");
  options.model = "org/model";
  CHECK(ErrorOf(options) == "--tokens: 3 tokens are less than one block of 4");
  options.model = "other";
  CHECK(ErrorOf(options) == "no declared model is named other; declared: org/model");
  options = {};
  options.keys = "abc";
  CHECK(ErrorOf(options).rfind("--keys: ", 0) == 0);
  options = {};
  options.tokens_file = "/nonexistent/tokens";
  options.model = "3";
  CHECK(ErrorOf(options) == "open /nonexistent/tokens");
}
