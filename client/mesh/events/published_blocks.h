// PublishedBlocks: which blocks of one model a router has been told of, and what is to be told
// next.
//
// What is published is what the node holds and whose tokens are known, as far as a router can use
// it: a block counts only if the block before it does, since routers match prefixes, and drop a
// block whose parent they do not know. On a GPU the parent must be on a GPU as well: routers keep a
// tree of the engines' own memory, and others beside it. So a block that leaves takes those
// after it along, until it is back.
//
// Work is in proportion to what has changed: a block is looked at again if replicas of it came or
// went since, if it was described or forgotten, or if what can be said of the block before it is
// another thing now. All replicas of a hash are taken for one block, at the place that the first
// one of them has named. Not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "client/mesh/events/block_tree.h"
#include "client/mesh/events/event_batch.h"
#include "client/mesh/events/token_table.h"

namespace kvm::mesh {

class PublishedBlocks {
 public:
  static constexpr std::size_t kBlocksOfBatch = 64;

  // Takes a batch to be sent, which tells of so many blocks that were stored or removed. If it
  // throws, what has been published is no longer known: call Forget.
  using Send = std::function<void(EventBatch& batch, std::size_t stored, std::size_t removed)>;

  // The node holds a replica of this block, or holds it no more. After a failure call HoldNothing.
  void Hold(const HeldChange& change);
  // The node holds nothing.
  void HoldNothing() noexcept;
  // The token table has this block from now on, or has it no more.
  void Look(const BlockKey& key);

  // Tells what has changed since the last Update: what is gone, the deepest blocks first, then what
  // is new, parents first; at most kBlocksOfBatch blocks a batch.
  void Update(TokenTable& tokens, const Send& send);
  // Tells everything that is published, parents first, about `most` blocks a batch.
  void Snapshot(const TokenTable& tokens, std::size_t most, const Send& send) const;
  // The readers know of nothing any more: the next Update tells all.
  void Forget() noexcept;

  std::size_t size() const noexcept { return published_; }
  std::size_t nodes() const noexcept { return tree_.size(); }               // kept in memory
  std::size_t looked_at() const noexcept { return looked_at_; }             // by the latest Update
  std::size_t replicas() const noexcept { return replicas_; }               // held
  std::size_t undescribed() const noexcept { return count(kUndescribed); }  // no tokens known
  std::size_t unreachable() const noexcept { return count(kUnreachable); }  // no parent told

 private:
  enum Standing : std::uint8_t { kNotHeld, kUndescribed, kUnreachable, kReachable };
  static constexpr std::uint32_t kNone = BlockTree::kNone;
  using Told = std::vector<std::uint32_t>;  // numbers of nodes

  // Where a block is to be once readers know nothing of it.
  struct NewPlace {
    std::uint32_t at = 0;
    HeldBlock block;
  };

  std::size_t count(Standing standing) const noexcept { return counts_[standing]; }
  void Queue(std::uint32_t at);
  void SetPlace(std::uint32_t at, const HeldBlock& block);
  // One round: what can be told now. Blocks that get another place are told in the next one.
  void Round(TokenTable& tokens, const Send& send);
  // Sets `found` of all that are queued, and of blocks after those that it changes.
  void Find(TokenTable& tokens, Told& looked_at, Told& changed);
  // True: `found` is another one.
  bool FindOne(BlockNode& node, TokenTable& tokens);
  Standing StandingOf(BlockNode& node, TokenTable& tokens, Media& media) const;
  // `looked_at` includes `changed`. Readers know of `found` now.
  void Settle(const Told& looked_at, const Told& changed);
  void TellRemoved(Media medium, const Told& gone, const Send& send) const;
  // `fresh`: parents first.
  void TellStored(Media medium, const Told& fresh, const TokenTable& tokens, std::size_t most, const Send& send) const;
  // Of each of `fresh`, the position of one that follows it; kNone: none does.
  Told Link(const Told& fresh) const;

  mutable BlockTree tree_;  // `position` changes while blocks are told
  Told queue_;
  bool queue_all_ = false;
  std::vector<NewPlace> places_;
  std::array<std::size_t, 4> counts_{};  // nodes by their standing
  std::size_t published_ = 0, replicas_ = 0, looked_at_ = 0;
};

}  // namespace kvm::mesh
