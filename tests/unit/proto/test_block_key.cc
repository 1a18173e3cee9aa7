// Properties of block keys: everything that goes into a key changes it and all keys behind it (I9).
#include <cstdint>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "kvm/block_key.h"
#include "tests/catch.h"

namespace {

using namespace kvm;

constexpr std::uint32_t kBlockTokens = 16;
constexpr std::size_t kBlocks = 8;

Fingerprint SomeFingerprint() {
  Fingerprint fingerprint;
  for (std::size_t i = 0; i < fingerprint.bytes.size(); ++i) fingerprint.bytes[i] = static_cast<std::uint8_t>(7 * i + 1);
  return fingerprint;
}

std::vector<std::uint32_t> SomeTokens(std::size_t count = kBlocks * kBlockTokens) {
  std::vector<std::uint32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 1000u);
  return tokens;
}

std::vector<BlockKey> Keys(const std::vector<std::uint32_t>& tokens, const Fingerprint& fingerprint = SomeFingerprint(),
                           const Shard& shard = {}, const std::vector<ExtraKey>& extras = {}) {
  std::vector<BlockKey> keys;
  KeyChain(fingerprint, shard, extras).Extend(tokens, kBlockTokens, keys);
  return keys;
}

// Whether the two lists agree on exactly the first `count` keys.
bool AgreeOnExactly(const std::vector<BlockKey>& a, const std::vector<BlockKey>& b, std::size_t count) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if ((a[i] == b[i]) != (i < count)) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("Keys: the same input gives the same keys, all of them different", "[unit]") {
  const std::vector<BlockKey> keys = Keys(SomeTokens());
  REQUIRE(keys.size() == kBlocks);
  CHECK(Keys(SomeTokens()) == keys);
  CHECK(std::set<BlockKey>(keys.begin(), keys.end()).size() == kBlocks);
}

TEST_CASE("Keys: a changed token changes its block's key and every later one, none before", "[unit]") {
  const std::vector<BlockKey> original = Keys(SomeTokens());
  for (std::size_t at = 0; at < kBlocks * kBlockTokens; ++at) {
    std::vector<std::uint32_t> tokens = SomeTokens();
    tokens[at] ^= 1u << (at % 32);
    INFO("token " << at);
    CHECK(AgreeOnExactly(original, Keys(tokens), at / kBlockTokens));
  }
}

TEST_CASE("Keys: swapped tokens and swapped blocks change the keys", "[unit]") {
  const std::vector<BlockKey> original = Keys(SomeTokens());
  std::vector<std::uint32_t> tokens = SomeTokens();
  std::swap(tokens[0], tokens[1]);
  CHECK(AgreeOnExactly(original, Keys(tokens), 0));
  tokens = SomeTokens();
  std::swap_ranges(tokens.begin() + kBlockTokens, tokens.begin() + 2 * kBlockTokens, tokens.begin() + 2 * kBlockTokens);
  CHECK(AgreeOnExactly(original, Keys(tokens), 1));
}

TEST_CASE("Keys: any bit of the fingerprint changes all keys", "[unit]") {
  const std::vector<BlockKey> original = Keys(SomeTokens());
  for (std::size_t bit = 0; bit < 256; ++bit) {
    Fingerprint fingerprint = SomeFingerprint();
    fingerprint.bytes[bit / 8] ^= static_cast<std::uint8_t>(1u << (bit % 8));
    INFO("bit " << bit);
    CHECK(AgreeOnExactly(original, Keys(SomeTokens(), fingerprint), 0));
  }
}

TEST_CASE("Keys: every part of the shard changes all keys", "[unit]") {
  const Shard shards[] = {{}, {0, 2, 0, 1, 0}, {1, 2, 0, 1, 0}, {0, 1, 0, 2, 0}, {0, 1, 1, 2, 0}, {0, 1, 0, 1, 1}, {0, 1, 0, 1, 256}};
  for (const Shard& a : shards) {
    for (const Shard& b : shards) {
      if (a == b) continue;
      CHECK(AgreeOnExactly(Keys(SomeTokens(), SomeFingerprint(), a), Keys(SomeTokens(), SomeFingerprint(), b), 0));
    }
  }
}

TEST_CASE("Keys: request extras change all keys by kind, value, order and boundary", "[unit]") {
  using Kind = ExtraKey::Kind;
  const std::vector<std::vector<ExtraKey>> variants = {
      {},
      {{Kind::kLora, ""}},
      {{Kind::kLora, "a"}},
      {{Kind::kCacheSalt, "a"}},
      {{Kind::kLora, "b"}},
      {{Kind::kLora, "a"}, {Kind::kCacheSalt, "b"}},
      {{Kind::kCacheSalt, "b"}, {Kind::kLora, "a"}},
      {{Kind::kLora, "ab"}, {Kind::kLora, ""}},
      {{Kind::kLora, "a"}, {Kind::kLora, "b"}},
      {{Kind::kLora, "a"}, {Kind::kLora, "a"}},
      {{Kind::kLora, std::string("a\0", 2)}},
  };
  for (std::size_t a = 0; a < variants.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      INFO("variants " << a << " and " << b);
      CHECK(AgreeOnExactly(Keys(SomeTokens(), SomeFingerprint(), {}, variants[a]), Keys(SomeTokens(), SomeFingerprint(), {}, variants[b]),
                           0));
    }
  }
}

TEST_CASE("Keys: an extra of one block changes that block's key and every later one", "[unit]") {
  const std::vector<std::uint32_t> tokens = SomeTokens();
  const std::vector<BlockKey> original = Keys(tokens);
  const ExtraKey image{ExtraKey::Kind::kMultimodal, "sha256:feed offset=3"};
  for (std::size_t with_image = 0; with_image < kBlocks; ++with_image) {
    KeyChain chain(SomeFingerprint(), {});
    std::vector<BlockKey> keys;
    for (std::size_t i = 0; i < kBlocks; ++i) {
      const std::span<const std::uint32_t> block = std::span(tokens).subspan(i * kBlockTokens, kBlockTokens);
      keys.push_back(i == with_image ? chain.Next(block, std::span(&image, 1)) : chain.Next(block));
    }
    INFO("block " << with_image);
    CHECK(AgreeOnExactly(original, keys, with_image));
  }
}

TEST_CASE("Keys: tokens and a block extra with the same bytes are not confused", "[unit]") {
  const std::uint32_t token = 7;
  const ExtraKey extra{static_cast<ExtraKey::Kind>(token), ""};
  CHECK(KeyChain(SomeFingerprint(), {}).Next(std::span(&token, 1)) != KeyChain(SomeFingerprint(), {}).Next({}, std::span(&extra, 1)));
}

TEST_CASE("Keys: the number of tokens in a block is part of its key", "[unit]") {
  const std::vector<std::uint32_t> zeros(64, 0);
  std::set<BlockKey> keys;
  for (std::size_t count = 0; count <= zeros.size(); ++count) {
    keys.insert(KeyChain(SomeFingerprint(), {}).Next(std::span(zeros).first(count)));
  }
  CHECK(keys.size() == zeros.size() + 1);
}

TEST_CASE("Keys: Extend gives the keys of full blocks only and appends", "[unit]") {
  const std::vector<BlockKey> all = Keys(SomeTokens());
  for (std::size_t count = 0; count <= kBlocks * kBlockTokens; ++count) {
    const std::vector<BlockKey> keys = Keys(SomeTokens(count));
    REQUIRE(keys.size() == count / kBlockTokens);
    CHECK(std::equal(keys.begin(), keys.end(), all.begin()));
  }
  std::vector<BlockKey> out{BlockKey{1, 2}};
  KeyChain(SomeFingerprint(), {}).Extend(SomeTokens(), kBlockTokens, out);
  CHECK(out.size() == kBlocks + 1);
  CHECK(out.front() == BlockKey{1, 2});
}

TEST_CASE("Keys: Extend with a block size of 0 derives nothing", "[unit]") {
  std::vector<BlockKey> out;
  KeyChain(SomeFingerprint(), {}).Extend(SomeTokens(), 0, out);
  CHECK(out.empty());
}

TEST_CASE("Keys: Extend in two calls equals Extend in one", "[unit]") {
  const std::vector<std::uint32_t> tokens = SomeTokens();
  KeyChain chain(SomeFingerprint(), {});
  std::vector<BlockKey> keys;
  chain.Extend(std::span(tokens).first(3 * kBlockTokens), kBlockTokens, keys);
  chain.Extend(std::span(tokens).subspan(3 * kBlockTokens), kBlockTokens, keys);
  CHECK(keys == Keys(tokens));
}

TEST_CASE("Keys: a chain resumes behind a known key", "[unit]") {
  const std::vector<std::uint32_t> tokens = SomeTokens();
  const std::vector<BlockKey> all = Keys(tokens);
  for (std::size_t known = 1; known < kBlocks; ++known) {
    KeyChain chain(SomeFingerprint(), {});
    chain.Resume(all[known - 1]);
    CHECK(chain.parent() == all[known - 1]);
    std::vector<BlockKey> rest;
    chain.Extend(std::span(tokens).subspan(known * kBlockTokens), kBlockTokens, rest);
    CHECK(rest == std::vector<BlockKey>(all.begin() + static_cast<std::ptrdiff_t>(known), all.end()));
  }
}

TEST_CASE("Keys: the parent is the root first and the last key afterwards, also after a move", "[unit]") {
  KeyChain chain(SomeFingerprint(), {});
  const BlockKey root = chain.parent();
  CHECK(root == KeyChain(SomeFingerprint(), {}).parent());
  const BlockKey first = chain.Next(SomeTokens());
  CHECK(first != root);
  KeyChain moved = std::move(chain);
  CHECK(moved.parent() == first);
  KeyChain reference(SomeFingerprint(), {});
  reference.Resume(first);
  CHECK(moved.Next(SomeTokens()) == reference.Next(SomeTokens()));
}

TEST_CASE("Keys: hexadecimal form round trips in digest byte order, either case", "[unit]") {
  const BlockKey key{0x0706050403020100, 0x0f0e0d0c0b0a0908};
  CHECK(key.ToHex() == "000102030405060708090a0b0c0d0e0f");
  for (const BlockKey& each : Keys(SomeTokens())) {
    const Result<BlockKey> back = BlockKey::FromHex(each.ToHex());
    KVM_REQUIRE_OK(back);
    CHECK(*back == each);
  }
  const Result<BlockKey> upper = BlockKey::FromHex("000102030405060708090A0B0C0D0E0F");
  KVM_REQUIRE_OK(upper);
  CHECK(*upper == key);
}

TEST_CASE("Keys: what is not 32 hexadecimal digits is refused", "[unit]") {
  for (const std::string bad :
       {"", "0", "000102030405060708090a0b0c0d0e0", "000102030405060708090a0b0c0d0e0f0", "0x0102030405060708090a0b0c0d0e0f",
        "000102030405060708090a0b0c0d0e0g", " 00102030405060708090a0b0c0d0e0f", "+00102030405060708090a0b0c0d0e0f"}) {
    INFO("'" << bad << "'");
    KVM_CHECK_ERROR(BlockKey::FromHex(bad), Errc::kInvalidArgument, "hexadecimal");
  }
}

TEST_CASE("Keys: a shard whose rank is not below its size is refused, the rank named", "[unit]") {
  KVM_REQUIRE_OK(Shard{}.Validate());
  KVM_REQUIRE_OK((Shard{7, 8, 3, 4, 65535}.Validate()));
  KVM_CHECK_ERROR((Shard{8, 8, 0, 1, 0}.Validate()), Errc::kInvalidArgument, "tp_rank");
  KVM_CHECK_ERROR((Shard{0, 0, 0, 1, 0}.Validate()), Errc::kInvalidArgument, "tp_rank");
  KVM_CHECK_ERROR((Shard{0, 1, 1, 1, 0}.Validate()), Errc::kInvalidArgument, "pp_rank");
  KVM_CHECK_ERROR((Shard{0, 1, 0, 0, 0}.Validate()), Errc::kInvalidArgument, "pp_rank");
}
