// Block keys: two inputs have one key only if all that goes into it is the same, wherever a value
// ends and the next one begins.
//
// Input: two chains, each u8 extras (kind, u8 bytes, bytes), u8 tokens (u32 each).
#include "kvm/block_key.h"
#include "tests/fuzz/targets.h"
#include "tests/support/data/model_specs.h"

namespace kvm::fuzz {
namespace {

struct Chain {
  explicit Chain(Consumer& consumer) {
    shard.tp_size = 8;
    shard.tp_rank = consumer.Take<std::uint8_t>() % 8;
    for (int left = consumer.Take<std::uint8_t>() % 4; left > 0; --left) {
      ExtraKey extra;
      extra.kind = static_cast<ExtraKey::Kind>(1 + consumer.Take<std::uint8_t>() % 5);
      for (int bytes = consumer.Take<std::uint8_t>() % 8; bytes > 0; --bytes)
        extra.value.push_back(static_cast<char>(consumer.Take<std::uint8_t>()));
      (left % 2 == 0 ? of_request : of_block).push_back(std::move(extra));
    }
    for (int left = 1 + consumer.Take<std::uint8_t>() % 8; left > 0; --left) tokens.push_back(consumer.Take<std::uint32_t>());
  }
  BlockKey Key() const {
    KeyChain chain(test::LlamaSpec().ComputeFingerprint(), shard, of_request);
    return chain.Next(tokens, of_block);
  }
  bool operator==(const Chain& other) const {
    const auto same = [](const std::vector<ExtraKey>& a, const std::vector<ExtraKey>& b) {
      if (a.size() != b.size()) return false;
      for (std::size_t i = 0; i < a.size(); ++i) {
        if (a[i].kind != b[i].kind || a[i].value != b[i].value) return false;
      }
      return true;
    };
    return shard == other.shard && tokens == other.tokens && same(of_request, other.of_request) && same(of_block, other.of_block);
  }

  Shard shard;
  std::vector<ExtraKey> of_request, of_block;
  std::vector<std::uint32_t> tokens;
};

}  // namespace

void BlockKeyTarget(Bytes input) {
  Consumer consumer(input);
  const Chain a(consumer), b(consumer);
  if ((a.Key() == b.Key()) != (a == b)) Broken("one key is one content");
  // Block by block and all at once are the same.
  KeyChain one(test::LlamaSpec().ComputeFingerprint(), a.shard, a.of_request),
      all(test::LlamaSpec().ComputeFingerprint(), a.shard, a.of_request);
  std::vector<BlockKey> keys;
  all.Extend(a.tokens, 1, keys);
  if (keys.size() != a.tokens.size()) Broken("each full block has a key");
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (one.Next(std::span(a.tokens).subspan(i, 1)) != keys[i]) Broken("a chain is its blocks");
  }
}

std::vector<std::string> BlockKeySeeds() {
  const std::string tokens("\x02\1\0\0\0\2\0\0\0\3\0\0\0", 13);
  const std::string plain = std::string("\0\0", 2) + tokens;
  // "ab", "c" and "a", "bc"
  const std::string extras = std::string("\0\2\0\2ab\1\1c", 10) + tokens, cut = std::string("\0\2\0\1a\1\2bc", 10) + tokens;
  return {plain + plain, extras + cut, extras + plain};
}

}  // namespace kvm::fuzz
