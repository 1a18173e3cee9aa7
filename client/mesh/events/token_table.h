// TokenTable: the token ids of a model's blocks, as workers have told them.
//
// Bounded: a block that is told when the table is full takes the place of the one that was told
// longest ago and that no worker of this node held in the latest pass. Not thread-safe.
#pragma once

#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/block_key.h"

namespace kvm::mesh {

class TokenTable {
 public:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};

  // `most`: blocks; at least 1.
  TokenTable(std::uint32_t block_tokens, std::size_t most);

  // `tokens`: block_tokens of them. `adapter`: the LoRA adapter's name; may be empty. False: there
  // are too many names of adapters.
  bool Put(const BlockKey& key, std::span<const std::uint32_t> tokens, std::string_view adapter);

  // Where the block is, until the next Put; kNone: no worker has told its tokens.
  std::uint32_t Find(const BlockKey& key) const noexcept;
  // Whether the block is where it was.
  bool Is(std::uint32_t at, const BlockKey& key) const noexcept { return at < slots_.size() && slots_[at].key == key; }
  std::span<const std::uint32_t> tokens(std::uint32_t at) const noexcept {
    return std::span(tokens_).subspan(std::size_t{at} * block_tokens_, block_tokens_);
  }
  std::string_view adapter(std::uint32_t at) const noexcept { return adapters_[slots_[at].adapter]; }
  // A new pass begins; blocks that it names to Held outlive others.
  void BeginPass() noexcept { ++pass_; }
  void Held(std::uint32_t at) noexcept { slots_[at].pass = pass_; }

  std::uint32_t block_tokens() const noexcept { return block_tokens_; }
  std::size_t size() const noexcept { return slots_.size(); }
  std::uint64_t forgotten() const noexcept { return forgotten_; }

 private:
  struct Slot {
    BlockKey key;
    std::uint32_t older = kNone, newer = kNone;
    std::uint32_t pass = 0;
    std::uint32_t adapter = 0;
  };

  std::uint32_t Take();
  void Link(std::uint32_t at) noexcept;
  void Unlink(std::uint32_t at) noexcept;
  std::uint32_t AdapterNumber(std::string_view adapter);

  const std::uint32_t block_tokens_;
  const std::size_t most_;
  boost::unordered_flat_map<BlockKey, std::uint32_t, std::hash<BlockKey>> at_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> tokens_;
  std::vector<std::string> adapters_{std::string()};
  std::uint32_t oldest_ = kNone, newest_ = kNone;
  std::uint32_t pass_ = 1;
  std::uint64_t forgotten_ = 0;
};

}  // namespace kvm::mesh
