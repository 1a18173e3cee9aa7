// TokenTable: the token ids of a model's blocks, as workers have told them.
//
// Bounded: a block that is told when the table is full takes the place of the one that was told
// longest ago and that this node does not hold. Not thread-safe.
#pragma once

#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/block_key.h"
#include "proto/base/secret_hash.h"

namespace kvm::mesh {

class TokenTable {
 public:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};

  // `most`: blocks; at least 1.
  TokenTable(std::uint32_t block_tokens, std::size_t most);

  struct PutOutcome {
    bool taken = false;                 // false: there are too many names of adapters
    bool is_new = false;                // the table did not have it
    std::optional<BlockKey> forgotten;  // what had its place
    explicit operator bool() const noexcept { return taken; }
  };

  // `tokens`: block_tokens of them. `adapter`: the LoRA adapter's name; may be empty.
  PutOutcome Put(const BlockKey& key, std::span<const std::uint32_t> tokens, std::string_view adapter);

  // Where the block is, until the next Put; kNone: no worker has told its tokens.
  std::uint32_t Find(const BlockKey& key) const noexcept;
  // Whether the block is where it was.
  bool Is(std::uint32_t at, const BlockKey& key) const noexcept { return at < slots_.size() && slots_[at].key == key; }
  std::span<const std::uint32_t> tokens(std::uint32_t at) const noexcept {
    return std::span(tokens_).subspan(std::size_t{at} * block_tokens_, block_tokens_);
  }
  std::string_view adapter(std::uint32_t at) const noexcept { return adapters_[slots_[at].adapter]; }
  // Whether this node holds the block: it outlives others then. No block is held at first.
  void SetHeld(std::uint32_t at, bool held) noexcept { slots_[at].held = held; }

  std::uint32_t block_tokens() const noexcept { return block_tokens_; }
  std::size_t size() const noexcept { return slots_.size(); }
  std::uint64_t forgotten() const noexcept { return forgotten_; }

 private:
  struct Slot {
    BlockKey key;
    std::uint32_t older = kNone, newer = kNone;
    std::uint32_t adapter = 0;
    bool held = false;
  };

  std::uint32_t Take(std::optional<BlockKey>& forgotten);
  void Link(std::uint32_t at) noexcept;
  void Unlink(std::uint32_t at) noexcept;
  std::uint32_t AdapterNumber(std::string_view adapter);

  const std::uint32_t block_tokens_;
  const std::size_t most_;
  boost::unordered_flat_map<BlockKey, std::uint32_t, SecretHash> at_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> tokens_;
  std::vector<std::string> adapters_{std::string()};
  std::uint32_t oldest_ = kNone, newest_ = kNone;
  std::uint64_t forgotten_ = 0;
};

}  // namespace kvm::mesh
