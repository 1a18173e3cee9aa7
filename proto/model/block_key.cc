// Key derivation. The byte strings hashed here are a published format: see docs/PROTOCOL.md.
//
// This file uses OpenSSL's SHA256_* calls and not EVP: for the 96 bytes of a 16-token block, EVP's
// bookkeeping costs as much as the hash itself (512 keys take 110 µs with EVP, 64 µs without).
#define OPENSSL_SUPPRESS_DEPRECATED
#include "kvm/block_key.h"

#include <openssl/sha.h>

#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

namespace kvm {
namespace {

static_assert(std::endian::native == std::endian::little, "keys hash little-endian token ids in place");

constexpr std::string_view kRootTag = "kvm.root.1";
constexpr std::string_view kBlockTag = "kvm1";

template <std::size_t N>
std::string Hex(const std::uint8_t (&bytes)[N]) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(2 * N);
  for (const std::uint8_t byte : bytes) {
    out.push_back(kDigits[byte >> 4]);
    out.push_back(kDigits[byte & 15]);
  }
  return out;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string BlockKey::ToHex() const {
  std::uint8_t bytes[16];
  std::memcpy(bytes, &lo, 8);
  std::memcpy(bytes + 8, &hi, 8);
  return Hex(bytes);
}

Result<BlockKey> BlockKey::FromHex(std::string_view hex) {
  std::uint8_t bytes[16];
  if (hex.size() != 2 * sizeof(bytes)) {
    return MakeError(Errc::kInvalidArgument, "a block key has 32 hexadecimal digits, got " + std::to_string(hex.size()));
  }
  for (std::size_t i = 0; i < sizeof(bytes); ++i) {
    const int high = HexDigit(hex[2 * i]), low = HexDigit(hex[2 * i + 1]);
    if (high < 0 || low < 0) return MakeError(Errc::kInvalidArgument, "not a hexadecimal block key: " + std::string(hex));
    bytes[i] = static_cast<std::uint8_t>(high << 4 | low);
  }
  BlockKey key;
  std::memcpy(&key.lo, bytes, 8);
  std::memcpy(&key.hi, bytes + 8, 8);
  return key;
}

std::string Fingerprint::ToHex() const {
  std::uint8_t raw[32];
  std::memcpy(raw, bytes.data(), sizeof(raw));
  return Hex(raw);
}

Status Shard::Validate() const {
  if (tp_rank >= tp_size) {
    return MakeError(Errc::kInvalidArgument,
                     "shard: tp_rank " + std::to_string(tp_rank) + " is not below tp_size " + std::to_string(tp_size));
  }
  if (pp_rank >= pp_size) {
    return MakeError(Errc::kInvalidArgument,
                     "shard: pp_rank " + std::to_string(pp_rank) + " is not below pp_size " + std::to_string(pp_size));
  }
  return {};
}

struct KeyChain::Digest {
  SHA256_CTX context;

  void Begin(std::string_view tag) {
    SHA256_Init(&context);
    SHA256_Update(&context, tag.data(), tag.size());
  }
  template <class T>
  void Add(T value) {
    static_assert(std::is_integral_v<T>);
    SHA256_Update(&context, &value, sizeof(value));
  }
  void Add(std::span<const ExtraKey> extras) {
    for (const ExtraKey& extra : extras) {
      Add(static_cast<std::uint32_t>(extra.kind));
      Add(static_cast<std::uint64_t>(extra.value.size()));
      SHA256_Update(&context, extra.value.data(), extra.value.size());
    }
  }
  BlockKey End() {
    std::uint8_t digest[SHA256_DIGEST_LENGTH];
    SHA256_Final(digest, &context);
    BlockKey key;
    std::memcpy(&key.lo, digest, 8);
    std::memcpy(&key.hi, digest + 8, 8);
    return key;
  }
};

KeyChain::KeyChain(const Fingerprint& fingerprint, const Shard& shard, std::span<const ExtraKey> request_extras)
    : digest_(std::make_unique<Digest>()) {
  digest_->Begin(kRootTag);
  SHA256_Update(&digest_->context, fingerprint.bytes.data(), fingerprint.bytes.size());
  for (const std::uint16_t part : {shard.tp_rank, shard.tp_size, shard.pp_rank, shard.pp_size, shard.kv_group}) digest_->Add(part);
  digest_->Add(request_extras);
  parent_ = digest_->End();
}

KeyChain::~KeyChain() = default;
KeyChain::KeyChain(KeyChain&&) noexcept = default;
KeyChain& KeyChain::operator=(KeyChain&&) noexcept = default;

BlockKey KeyChain::Next(std::span<const std::uint32_t> tokens, std::span<const ExtraKey> block_extras) {
  // Tag, count and parent are hashed in one update, since three small updates cost more than
  // hashing the bytes.
  struct Head {
    char tag[4];
    std::uint32_t n_tokens;
    BlockKey parent;
  } head;
  static_assert(sizeof(Head) == 24);
  std::memcpy(head.tag, kBlockTag.data(), sizeof(head.tag));
  head.n_tokens = static_cast<std::uint32_t>(tokens.size());
  head.parent = parent_;
  SHA256_Init(&digest_->context);
  SHA256_Update(&digest_->context, &head, sizeof(head));
  SHA256_Update(&digest_->context, tokens.data(), tokens.size_bytes());
  digest_->Add(block_extras);
  parent_ = digest_->End();
  return parent_;
}

void KeyChain::Extend(std::span<const std::uint32_t> tokens, std::uint32_t block_tokens, std::vector<BlockKey>& out) {
  if (block_tokens == 0) return;
  out.reserve(out.size() + tokens.size() / block_tokens);
  for (; tokens.size() >= block_tokens; tokens = tokens.subspan(block_tokens)) {
    out.push_back(Next(tokens.first(block_tokens)));
  }
}

}  // namespace kvm
