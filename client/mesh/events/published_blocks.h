// PublishedBlocks: which blocks of a model a router has been told of, and what is to be told next.
//
// What is published is what the node holds and whose tokens are known, as far as a router can use
// it: a block counts only if the block before it does, since routers match prefixes, and drop a
// block whose parent they do not know. On a GPU the parent must be on a GPU as well: routers keep a
// tree of the engines' own memory, and others beside it. So a block that leaves takes those
// after it along, until it is back.
//
// Not thread-safe.
#pragma once

#include <boost/unordered/unordered_flat_map.hpp>
#include <boost/unordered/unordered_flat_set.hpp>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "client/mesh/events/event_batch.h"
#include "client/mesh/events/token_table.h"

namespace kvm::mesh {

// What a pass has found.
struct PassCounts {
  std::size_t undescribed = 0;  // keys of which no worker has told the tokens
  std::size_t unreachable = 0;  // other ones: the block before is not published
};

class PublishedBlocks {
 public:
  static constexpr std::size_t kBlocksOfBatch = 64;

  // Takes a batch to be sent, which tells of so many blocks that were stored or removed. If it
  // throws, what has been published is no longer known: call Forget.
  using Send = std::function<void(EventBatch& batch, std::size_t stored, std::size_t removed)>;

  // Tells what has changed now that the node holds `held` (of this model, in any order): what is
  // gone, the deepest blocks first, then what is new, parents first; at most kBlocksOfBatch blocks
  // a batch.
  PassCounts Update(std::span<const HeldBlock> held, TokenTable& tokens, const Send& send);
  // Tells everything that is published, parents first, about `most` blocks a batch.
  void Snapshot(const TokenTable& tokens, std::size_t most, const Send& send) const;
  // The readers know of nothing any more.
  void Forget() noexcept { blocks_.clear(); }
  std::size_t size() const noexcept { return blocks_.size(); }

 private:
  static constexpr std::uint32_t kNotTold = ~std::uint32_t{0};

  struct Block {
    BlockKey key;
    std::uint64_t parent = 0;
    std::uint32_t depth = 0;
    // The pass that found it, and where the token table had it then
    std::uint32_t pass = 0, slot = TokenTable::kNone;
    mutable std::uint32_t position = kNotTold;  // among those that are being told
    Media media = 0;                            // of which readers know
    Media found = 0;                            // of which they may know, by the pass
  };
  // By hash. No block is added or removed while others are told, so that pointers stay good.
  using Blocks = boost::unordered_flat_map<std::uint64_t, Block>;
  using Told = std::vector<const Block*>;

  // Sets `found` of all that can be reached, and counts.
  PassCounts Find(std::span<const HeldBlock> held, TokenTable& tokens);
  void FindOne(const HeldBlock& held, TokenTable& tokens, PassCounts& counts);
  bool FoundIn(const Block& block, Media medium) const noexcept { return block.pass == pass_ && (block.found & medium) != 0; }
  static void TellRemoved(Media medium, const Told& gone, const Send& send);
  // `fresh`: parents first.
  void TellStored(Media medium, const Told& fresh, const TokenTable& tokens, std::size_t most, const Send& send) const;
  // Of each of `fresh`, the position of one that follows it; kNotTold: none does.
  std::vector<std::uint32_t> Link(const Told& fresh) const;

  Blocks blocks_;
  std::vector<std::uint64_t> order_;  // depth and index of what is held; kept for its memory
  // Keys whose tokens are not known, so that replicas are counted once.
  boost::unordered_flat_set<std::uint64_t> undescribed_, unreachable_;
  std::uint32_t pass_ = 0;
};

}  // namespace kvm::mesh
