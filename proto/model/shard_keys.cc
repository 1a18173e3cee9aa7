// Derivation of shards' keys. The bytes hashed and encrypted here are a published format: see
// docs/PROTOCOL.md.
#include "kvm/shard_keys.h"

#include <openssl/evp.h>
#include <openssl/sha.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

namespace kvm {
namespace {

constexpr std::string_view kShardRootTag = "kvm.shard.1";
constexpr std::size_t kRunBlocks = 4096;  // of one call of OpenSSL, which counts bytes in an int

template <class T>
void Append(std::string& bytes, const T& value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

BlockKey RootOf(const Fingerprint& fingerprint, const Shard& shard, std::span<const ExtraKey> extras) {
  std::string bytes(kShardRootTag);
  bytes.append(reinterpret_cast<const char*>(fingerprint.bytes.data()), fingerprint.bytes.size());
  for (const std::uint16_t part : {shard.tp_rank, shard.tp_size, shard.pp_rank, shard.pp_size, shard.kv_group}) Append(bytes, part);
  for (const ExtraKey& extra : extras) {
    Append(bytes, static_cast<std::uint32_t>(extra.kind));
    Append(bytes, static_cast<std::uint64_t>(extra.value.size()));
    bytes.append(extra.value);
  }
  std::uint8_t digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(), digest);
  BlockKey root;
  std::memcpy(&root.lo, digest, sizeof(root.lo));
  std::memcpy(&root.hi, digest + sizeof(root.lo), sizeof(root.hi));
  return root;
}

}  // namespace

struct ShardKeys::Cipher {
  EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new();

  Cipher() = default;
  Cipher(const Cipher&) = delete;
  Cipher& operator=(const Cipher&) = delete;
  ~Cipher() { EVP_CIPHER_CTX_free(context); }

  bool Begin(const BlockKey& root) {
    std::uint8_t key[sizeof(root)];
    std::memcpy(key, &root, sizeof(key));
    return context != nullptr && EVP_EncryptInit_ex(context, EVP_aes_128_ecb(), nullptr, key, nullptr) == 1 &&
           EVP_CIPHER_CTX_set_padding(context, 0) == 1;
  }
};

ShardKeys::ShardKeys(std::unique_ptr<Cipher> cipher, const BlockKey& root) : cipher_(std::move(cipher)), root_(root) {}
ShardKeys::~ShardKeys() = default;
ShardKeys::ShardKeys(ShardKeys&&) noexcept = default;
ShardKeys& ShardKeys::operator=(ShardKeys&&) noexcept = default;

Result<ShardKeys> ShardKeys::Make(const Fingerprint& fingerprint, const Shard& shard, std::span<const ExtraKey> extras) {
  const BlockKey root = RootOf(fingerprint, shard, extras);
  auto cipher = std::make_unique<Cipher>();
  if (!cipher->Begin(root)) return MakeError(Errc::kUnsupported, "keys of shards need AES-128, which this OpenSSL does not give");
  return ShardKeys(std::move(cipher), root);
}

Status ShardKeys::Derive(std::span<const BlockKey> names, std::vector<BlockKey>& out) {
  const std::size_t first = out.size();
  out.resize(first + names.size());
  for (std::size_t done = 0; done < names.size();) {
    const auto run = names.subspan(done, std::min(kRunBlocks, names.size() - done));
    BlockKey* keys = out.data() + first + done;
    int written = 0;
    if (EVP_EncryptUpdate(cipher_->context, reinterpret_cast<std::uint8_t*>(keys), &written,
                          reinterpret_cast<const std::uint8_t*>(run.data()), static_cast<int>(run.size_bytes())) != 1 ||
        static_cast<std::size_t>(written) != run.size_bytes()) {
      out.resize(first);
      return MakeError(Errc::kUnsupported, "keys of shards: OpenSSL's AES-128 failed");
    }
    for (std::size_t i = 0; i < run.size(); ++i) {
      keys[i].lo ^= run[i].lo;
      keys[i].hi ^= run[i].hi;
    }
    done += run.size();
  }
  return {};
}

}  // namespace kvm
