// Block keys of one shard, derived from names of the blocks' content that all shards share.
//
//   root   = SHA-256("kvm.shard.1" ‖ fingerprint ‖ shard ‖ extra keys)[0:16]
//   key[i] = AES-128(root, name[i]) ⊕ name[i]
//
// A name is 128 bits that a collision-resistant chain over the prefix has made: a key of KeyChain,
// or the first half of an engine's own SHA-256 block hash. So the tokens are hashed once, whatever
// the number of shards, or not at all where the engine has hashed them already.
//
// AES with its input added is the Matyas–Meyer–Oseas compression function (ISO/IEC 10118-2): names
// can't be computed from keys although the root is public, and no pair of roots has keys in a known
// relation, as an exclusive or with the root would have. Byte for byte in docs/PROTOCOL.md, with
// test vectors.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kvm/block_key.h"
#include "kvm/error.h"

namespace kvm {

// Not thread-safe. Costs a microsecond to make: keep one for each shard and set of extras.
class ShardKeys {
 public:
  // `extras`: what changes the KV bytes and is not in the names; order matters and must be the same
  // in every process. kUnsupported: this machine's OpenSSL has no AES-128.
  [[nodiscard]] static Result<ShardKeys> Make(const Fingerprint& fingerprint, const Shard& shard, std::span<const ExtraKey> extras = {});
  ~ShardKeys();
  ShardKeys(ShardKeys&&) noexcept;
  ShardKeys& operator=(ShardKeys&&) noexcept;

  // The parent of the first block.
  const BlockKey& root() const noexcept { return root_; }

  // Appends the key of each of `names` to `out`. kUnsupported: OpenSSL fails; nothing is appended.
  [[nodiscard]] Status Derive(std::span<const BlockKey> names, std::vector<BlockKey>& out);

 private:
  struct Cipher;
  ShardKeys(std::unique_ptr<Cipher> cipher, const BlockKey& root);

  std::unique_ptr<Cipher> cipher_;
  BlockKey root_;
};

}  // namespace kvm
