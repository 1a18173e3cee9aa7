// Block keys: the exact 128-bit name of a block's content, chained over the prefix.
//
//   root   = SHA-256("kvm.root.1" ‖ fingerprint ‖ shard ‖ extra keys of the request)[0:16]
//   key[i] = SHA-256("kvm1" ‖ n_tokens ‖ parent ‖ token ids ‖ extra keys of the block)[0:16]
//
// with parent = root for the first block, key[i-1] after it. Byte for byte in docs/PROTOCOL.md,
// with test vectors in tests/unit/proto/key_vectors.txt. Everything that changes the KV bytes is in
// the key. Collisions: among 2^40 blocks of a domain, two 128-bit keys collide with probability
// below 2^-48.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/error.h"

namespace kvm {

// The 128-bit name of a block: of all tokens up to its end, the model and the shard. A plain value.
struct BlockKey {
  std::uint64_t lo = 0;  // digest bytes 0..7, little endian
  std::uint64_t hi = 0;  // digest bytes 8..15

  friend auto operator<=>(const BlockKey&, const BlockKey&) = default;

  // 32 lower-case digits, in digest byte order
  std::string ToHex() const;
  [[nodiscard]] static Result<BlockKey> FromHex(std::string_view hex);  // kInvalidArgument
};
static_assert(sizeof(BlockKey) == 16);

// Whether a block is one of a sample of one in `one_in` blocks; 0: of no sample, 1: all blocks are.
// The key decides, so publisher and importer choose the same blocks without a word, and of two
// samples the smaller one is part of the larger.
constexpr bool InSample(const BlockKey& key, std::uint32_t one_in) noexcept { return one_in != 0 && key.lo <= ~std::uint64_t{0} / one_in; }

// SHA-256 of a canonical ModelSpec (kvm/model_spec.h).
struct Fingerprint {
  std::array<std::uint8_t, 32> bytes{};

  friend auto operator<=>(const Fingerprint&, const Fingerprint&) = default;
  std::string ToHex() const;  // 64 digits
};

// Which part of a model's KV a block holds.
struct Shard {
  std::uint16_t tp_rank = 0, tp_size = 1;  // tensor-parallel rank of size
  std::uint16_t pp_rank = 0, pp_size = 1;  // pipeline-parallel rank of size
  std::uint16_t kv_group = 0;              // KV-cache group: full attention, sliding window, …

  friend auto operator<=>(const Shard&, const Shard&) = default;
  [[nodiscard]] Status Validate() const;  // kInvalidArgument: a rank is not below its size
};

// Something besides the tokens that changes the KV bytes. `kind` separates name spaces.
struct ExtraKey {
  // The name spaces.
  enum class Kind : std::uint32_t {
    kLora = 1,          // adapter name or digest; of the request
    kCacheSalt = 2,     // the request's cache salt; of the request
    kMultimodal = 3,    // content hash and offset of a multimodal item; of the block
    kPromptEmbeds = 4,  // digest of prompt embeddings; of the block
    kOther = 5,
  };
  Kind kind = Kind::kOther;
  std::string value;
};

// Derives the keys of one request's blocks, in order. Not thread-safe; cheap to make per request.
class KeyChain {
 public:
  // `request_extras`: LoRA, cache salt; order matters and must be the same in every process.
  KeyChain(const Fingerprint& fingerprint, const Shard& shard, std::span<const ExtraKey> request_extras = {});
  ~KeyChain();
  KeyChain(KeyChain&&) noexcept;
  KeyChain& operator=(KeyChain&&) noexcept;

  // Key of the next block. `tokens`: the block's token ids, [block_tokens]; `block_extras`: what
  // falls into this block. Each call advances the chain.
  BlockKey Next(std::span<const std::uint32_t> tokens, std::span<const ExtraKey> block_extras = {});

  // Appends the keys of all *full* blocks of `tokens` to `out`; a partial block at the end has no
  // key.
  void Extend(std::span<const std::uint32_t> tokens, std::uint32_t block_tokens, std::vector<BlockKey>& out);

  // The parent of the next block: the root before the first call of Next, then the last key.
  const BlockKey& parent() const noexcept { return parent_; }
  // Goes on behind `parent`, a key from another chain with the same fingerprint, shard and extras.
  void Resume(const BlockKey& parent) noexcept { parent_ = parent; }

 private:
  struct Digest;
  std::unique_ptr<Digest> digest_;
  BlockKey parent_;
};

}  // namespace kvm

template <>
struct std::hash<kvm::BlockKey> {
  std::size_t operator()(const kvm::BlockKey& key) const noexcept { return key.lo; }
};
