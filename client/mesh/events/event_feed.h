// EventFeed: what this node publishes for routers, without sockets and threads.
//
// One stream of batches with consecutive sequence numbers. Each model has a topic, kv@NODE@MODEL,
// which begins with AllBlocksCleared: what an earlier process of this node has told holds no more.
// Of several variants of a model under one name (another dtype, say) one is told at a time, since a
// router can't tell them apart. Not thread-safe.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/mesh/events/block_description.h"
#include "client/mesh/events/event_ring.h"
#include "client/mesh/events/held_blocks.h"
#include "client/mesh/events/published_blocks.h"
#include "client/mesh/events/token_table.h"

namespace kvm::mesh {

struct FeedOptions {
  std::string node;
  std::string model;                               // the only one to tell of; empty: all
  std::size_t most_blocks = std::size_t{1} << 20;  // of a model, whose tokens are remembered
  std::size_t ring_batches = 10'000;
  std::size_t ring_bytes = std::size_t{64} << 20;
};

// At present, the first ones; the others since the process began.
struct FeedCounts {
  std::uint64_t blocks = 0;     // that routers know of
  std::uint64_t described = 0;  // whose tokens are remembered
  // Held, and no worker has told their tokens
  std::uint64_t undescribed = 0;
  // Held and described, and the block before is not published
  std::uint64_t unreachable = 0;
  // Held, of a model whose name another variant has
  std::uint64_t other_variant = 0;
  // Descriptions that have made room for others
  std::uint64_t forgotten = 0;
  // Blocks of descriptions that could not be taken
  std::uint64_t refused = 0;
  std::uint64_t batches = 0, stored = 0, removed = 0;  // published
  std::uint64_t replays = 0, snapshots = 0;            // answered
};

class EventFeed {
 public:
  using Send = std::function<void(const PublishedBatch& batch)>;
  using Clock = std::function<std::chrono::system_clock::time_point()>;

  static constexpr std::size_t kMaxModels = 64;
  // Blocks of a batch of a snapshot, at least.
  static constexpr std::size_t kBlocksOfSnapshotBatch = 4096;

  EventFeed(FeedOptions options, std::uint64_t first_sequence, Clock clock = std::chrono::system_clock::now);

  // Takes effect with the next Pass.
  void Describe(BlockDescription description);
  // The same. If it throws, all that is held has to be said again.
  void Use(const HeldChanges& changes);
  // Publishes what has changed, in time that is in proportion to it. If it throws, or `send` does,
  // what was published counts as unknown, and is cleared and told again by the next Pass.
  void Pass(const Send& send);
  // An empty batch, so that a subscriber notices what it has missed; nothing without a topic.
  void Heartbeat(const Send& send);
  // What a subscriber has to be sent that wants all from `sequence` on: these batches, or, if they
  // are not kept any more, all that is published now, as batches with the numbers up to the latest.
  std::vector<PublishedBatch> Replay(std::uint64_t sequence);

  std::uint64_t latest() const noexcept { return next_ - 1; }  // sequence number
  const FeedCounts& counts() const noexcept { return counts_; }

 private:
  struct Topic {
    std::shared_ptr<const std::string> name;
    const Fingerprint* teller = nullptr;  // the variant that is published; null: none is
    bool cleared = false;
  };
  struct Variant {
    explicit Variant(std::uint32_t block_tokens, std::size_t most) : tokens(block_tokens, most) {}
    TokenTable tokens;
    PublishedBlocks published;
    Topic* topic = nullptr;  // null: no scan has named the model yet
  };
  using Variants = std::map<Fingerprint, Variant>;

  Variants::iterator VariantOf(const Fingerprint& fingerprint, std::uint32_t block_tokens);
  void TakeDescriptions();
  // Of the models of HeldChanges.
  void NameTopics(const std::vector<HeldModel>& models);
  void PassVariant(const Fingerprint& fingerprint, Variant& variant, const Send& send);
  void ForgetAll() noexcept;
  void Publish(const Topic& topic, EventBatch& batch, const Send& send);
  std::vector<PublishedBatch> Snapshot(std::uint64_t sequence);
  double Now() const;

  const FeedOptions options_;
  const Clock clock_;
  std::uint64_t next_;
  EventRing ring_;
  std::vector<BlockDescription> descriptions_;
  Variants variants_;
  std::vector<Variant*> by_model_;       // of HeldChanges; null: not to be told of
  std::map<std::string, Topic> topics_;  // by the model's name
  FeedCounts counts_;
};

}  // namespace kvm::mesh
