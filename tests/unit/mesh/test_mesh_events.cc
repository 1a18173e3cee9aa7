// What routers are told: in which order, of which blocks, and what a subscriber gets that has
// missed something.
#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <vector>

#include "client/mesh/events/event_feed.h"
#include "client/mesh/events/event_sequence.h"
#include "client/mesh/events/node_events.h"
#include "tests/catch.h"
#include "tests/support/data/random.h"
#include "tests/support/mesh/event_reader.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using mesh::BlockDescription;
using mesh::EventBatch;
using mesh::EventFeed;
using mesh::FeedOptions;
using mesh::HeldBlock;
using mesh::HeldChange;
using mesh::HeldChanges;
using mesh::HeldModel;
using mesh::kCpuMedium;
using mesh::kGpuMedium;
using mesh::Media;
using mesh::PublishedBatch;
using mesh::PublishedBlocks;
using mesh::TokenTable;
using test::EventReader;
using test::KvEvent;
using test::Random;
using test::ReadEvents;

constexpr std::uint32_t kTokens = 4;

BlockKey Key(std::uint64_t number) { return {number, ~number}; }
std::vector<std::uint32_t> TokensOf(const BlockKey& key, std::uint32_t count = kTokens) {
  std::vector<std::uint32_t> out;
  for (std::uint32_t i = 0; i < count; ++i) out.push_back(static_cast<std::uint32_t>(key.lo * 31 + i));
  return out;
}

Fingerprint Variant(std::uint8_t number) {
  Fingerprint out;
  out.bytes[0] = number;
  return out;
}

BlockDescription Describe(const std::vector<std::uint64_t>& numbers, std::uint8_t variant = 1, const std::string& adapter = "") {
  BlockDescription out{Variant(variant), kTokens, {}, {}, adapter};
  for (const std::uint64_t number : numbers) {
    out.keys.push_back(Key(number));
    const auto tokens = TokensOf(Key(number));
    out.tokens.insert(out.tokens.end(), tokens.begin(), tokens.end());
  }
  return out;
}

// All that a node holds.
struct HeldBlocks {
  std::vector<HeldModel> models;
  std::vector<HeldBlock> blocks;
};

HeldBlocks Held(std::vector<HeldBlock> blocks) { return {{{Variant(1), "m", kTokens}}, std::move(blocks)}; }

// The blocks first, first + 1, … of one prefix, which begins with block 1.
std::vector<HeldBlock> Chain(std::uint64_t first, std::uint64_t count, Media medium = kCpuMedium) {
  std::vector<HeldBlock> out;
  for (std::uint64_t i = first; i < first + count; ++i) out.push_back({Key(i), i - 1, static_cast<std::uint32_t>(i - 1), 0, medium});
  return out;
}

std::vector<std::uint64_t> Numbers(std::uint64_t first, std::uint64_t count) {
  std::vector<std::uint64_t> out;
  for (std::uint64_t i = first; i < first + count; ++i) out.push_back(i);
  return out;
}

// A feed, all that it has sent, and a reader of it.
struct Stream {
  explicit Stream(FeedOptions options = {}, std::uint64_t first = 1000) : feed(WithName(options), first) {}
  static FeedOptions WithName(FeedOptions options) {
    options.node = "a";
    return options;
  }
  // The node holds this now: what has changed since the last call, in any order, or all of it.
  void Use(const HeldBlocks& now, bool all = false) {
    HeldChanges changes{all, now.models, {}};
    if (all) before.clear();
    for (const HeldBlock& block : now.blocks)
      if (!Take(before, block)) changes.changes.push_back({block, true});
    for (const HeldBlock& block : before) changes.changes.push_back({{block.key, 0, 0, block.model, block.medium}, false});
    for (std::size_t i = changes.changes.size(); i > 1; --i) std::swap(changes.changes[i - 1], changes.changes[order.Below(i)]);
    before = now.blocks;
    feed.Use(changes);
  }
  // One that is the same.
  static bool Take(std::vector<HeldBlock>& from, const HeldBlock& block) {
    const auto same = std::find_if(from.begin(), from.end(), [&](const HeldBlock& each) {
      return each.key == block.key && each.parent_lo == block.parent_lo && each.depth == block.depth && each.model == block.model &&
             each.medium == block.medium;
    });
    if (same == from.end()) return false;
    *same = from.back();
    from.pop_back();
    return true;
  }
  void Pass() {
    feed.Pass([this](const PublishedBatch& batch) { Take(batch); });
  }
  void Take(const PublishedBatch& batch) {
    sent.push_back(batch);
    reader.Apply(*batch.payload);
  }
  std::vector<KvEvent> EventsFrom(std::size_t first) const {
    std::vector<KvEvent> out;
    for (std::size_t i = first; i < sent.size(); ++i)
      for (KvEvent& event : ReadEvents(*sent[i].payload)) out.push_back(std::move(event));
    return out;
  }

  EventFeed feed;
  std::vector<HeldBlock> before;
  Random order{3};
  std::vector<PublishedBatch> sent;
  EventReader reader;
};

}  // namespace

TEST_CASE("Events: a prefix is told from its first block on, with tokens, and its end leaves first", "[unit]") {
  Stream stream;
  stream.feed.Describe(Describe(Numbers(1, 5)));
  std::vector<HeldBlock> blocks = Chain(1, 5);
  std::reverse(blocks.begin(), blocks.end());
  stream.Use(Held(blocks));
  stream.Pass();
  const std::vector<KvEvent> told = stream.EventsFrom(0);
  REQUIRE(told.size() == 2);
  CHECK(told[0].type == "AllBlocksCleared");
  CHECK(told[1].type == "BlockStored");
  CHECK(told[1].hashes == Numbers(1, 5));
  CHECK_FALSE(told[1].parent);
  CHECK(told[1].medium == "CPU");
  CHECK(told[1].block_size == kTokens);
  CHECK(stream.reader.blocks().at({"CPU", 3}).tokens[2] == TokensOf(Key(3))[2]);
  CHECK(*stream.sent[1].topic == "kv@a@m");
  CHECK(stream.sent[1].sequence == stream.sent[0].sequence + 1);
  const std::size_t before = stream.sent.size();
  stream.Use(Held(Chain(1, 2)));
  stream.Pass();
  const std::vector<KvEvent> gone = stream.EventsFrom(before);
  REQUIRE(gone.size() == 1);
  CHECK(gone[0].type == "BlockRemoved");
  CHECK(gone[0].hashes == std::vector<std::uint64_t>{5, 4, 3});
  stream.Use(Held({}));
  stream.Pass();
  CHECK(stream.reader.blocks().empty());
  CHECK(stream.reader.refused().empty());
}

TEST_CASE("Events: a change of nothing publishes nothing", "[unit]") {
  Stream stream;
  stream.feed.Describe(Describe(Numbers(1, 3)));
  stream.Use(Held(Chain(1, 3)));
  stream.Pass();
  const std::size_t before = stream.sent.size();
  stream.Use(Held(Chain(1, 3)));
  stream.feed.Describe(Describe(Numbers(1, 3)));
  stream.Pass();
  CHECK(stream.sent.size() == before);
}

TEST_CASE("Events: a batch has 64 blocks at most, and a longer prefix goes on in the next one", "[unit]") {
  Stream stream;
  stream.feed.Describe(Describe(Numbers(1, 200)));
  stream.Use(Held(Chain(1, 200)));
  stream.Pass();
  CHECK(stream.reader.blocks().size() == 200);
  CHECK(stream.sent.size() == 1 + 4);
  CHECK(stream.reader.largest_batch() == 64);
  stream.Use(Held({}));
  stream.Pass();
  CHECK(stream.reader.largest_batch() == 64);
  CHECK(stream.sent.size() == 1 + 4 + 4);
  CHECK(stream.reader.refused().empty());
}

TEST_CASE("Events: blocks behind a missing one are not told, and are once it is back", "[unit]") {
  Stream stream;
  stream.feed.Describe(Describe(Numbers(1, 6)));
  stream.Use(Held(Chain(1, 6)));
  stream.Pass();
  REQUIRE(stream.reader.blocks().size() == 6);
  std::vector<HeldBlock> blocks = Chain(1, 6);
  blocks.erase(blocks.begin() + 2);
  stream.Use(Held(blocks));
  stream.Pass();
  CHECK(stream.reader.blocks().size() == 2);
  CHECK(stream.feed.counts().unreachable == 3);
  stream.Use(Held(Chain(1, 6)));
  stream.Pass();
  CHECK(stream.reader.blocks().size() == 6);
  CHECK(stream.feed.counts().unreachable == 0);
  CHECK(stream.reader.refused().empty());
}

TEST_CASE("Events: a block whose tokens no worker has told is counted, and told once one does", "[unit]") {
  Stream stream;
  stream.feed.Describe(Describe({1, 3}));
  stream.Use(Held(Chain(1, 3)));
  stream.Pass();
  CHECK(stream.reader.blocks().size() == 1);
  CHECK(stream.feed.counts().undescribed == 1);
  CHECK(stream.feed.counts().unreachable == 1);
  stream.feed.Describe(Describe({2}));
  stream.Pass();
  CHECK(stream.reader.blocks().size() == 3);
  CHECK(stream.feed.counts().undescribed == 0);
  CHECK(stream.reader.refused().empty());
}

TEST_CASE("Events: each memory is told of by itself, and a GPU's block only behind one that is on a GPU", "[unit]") {
  Stream stream;
  stream.feed.Describe(Describe(Numbers(1, 4)));
  std::vector<HeldBlock> blocks = Chain(1, 4, kGpuMedium);
  for (const HeldBlock& block : Chain(1, 3)) blocks.push_back(block);
  stream.Use(Held(blocks));
  stream.Pass();
  CHECK(stream.reader.blocks().size() == 7);
  // The second block leaves the GPU: what is behind it there can't be matched there.
  blocks.erase(blocks.begin() + 1);
  stream.Use(Held(blocks));
  stream.Pass();
  std::set<EventReader::Key> expected{{"GPU", 1}, {"CPU", 1}, {"CPU", 2}, {"CPU", 3}};
  std::set<EventReader::Key> known;
  for (const auto& [key, block] : stream.reader.blocks()) known.insert(key);
  CHECK(known == expected);
  CHECK(stream.reader.refused().empty());
}

TEST_CASE("Events: blocks of an adapter say so", "[unit]") {
  Stream stream;
  stream.feed.Describe(Describe(Numbers(1, 2), 1, "tuned"));
  stream.Use(Held(Chain(1, 2)));
  stream.Pass();
  CHECK(stream.reader.blocks().at({"CPU", 2}).adapter == "tuned");
}

TEST_CASE("Events: over many random changes a router knows what can be reached, and nothing else", "[unit]") {
  Random random(7);
  constexpr std::uint64_t kBlocks = 600;
  // A forest: block n follows a random earlier one, or none.
  std::vector<HeldBlock> forest;
  for (std::uint64_t n = 1; n <= kBlocks; ++n) {
    const std::uint64_t parent = n < 8 || random.Below(20) == 0 ? 0 : 1 + random.Below(n - 1);
    const std::uint32_t depth = parent == 0 ? 0 : forest[parent - 1].depth + 1;
    forest.push_back({Key(n), parent == 0 ? 77'777'777 : parent, depth, 0, 0});
  }
  Stream stream;
  std::vector<Media> held(kBlocks + 1, 0);
  std::vector<int> more(kBlocks + 1, 0);  // further replicas
  std::vector<bool> described(kBlocks + 1, false);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::uint64_t> news;
    for (int change = 0; change < 60; ++change) {
      const std::uint64_t n = 1 + random.Below(kBlocks);
      held[n] = static_cast<Media>(random.Below(4));
      more[n] = static_cast<int>(random.Below(3));
      if (!described[n] && random.Below(3) != 0) {
        described[n] = true;
        news.push_back(n);
      }
    }
    if (!news.empty()) stream.feed.Describe(Describe(news));
    std::vector<HeldBlock> blocks;
    std::set<EventReader::Key> expected;
    for (std::uint64_t n = kBlocks; n >= 1; --n) {
      for (const Media medium : {kGpuMedium, kCpuMedium}) {
        if ((held[n] & medium) == 0) continue;
        for (int replica = 0; replica <= more[n]; ++replica) {
          blocks.push_back(forest[n - 1]);
          blocks.back().medium = medium;
        }
      }
    }
    for (std::uint64_t n = 1; n <= kBlocks; ++n) {
      const bool first = forest[n - 1].depth == 0;
      const std::uint64_t parent = forest[n - 1].parent_lo;
      const bool on_gpu = first || expected.contains({"GPU", parent});
      const bool anywhere = on_gpu || expected.contains({"CPU", parent});
      if (described[n] && (held[n] & kGpuMedium) != 0 && on_gpu) expected.insert({"GPU", n});
      if (described[n] && (held[n] & kCpuMedium) != 0 && anywhere) expected.insert({"CPU", n});
    }
    stream.Use(Held(blocks), random.OneIn(15));
    stream.Pass();
    std::set<EventReader::Key> known;
    for (const auto& [key, block] : stream.reader.blocks()) {
      known.insert(key);
      CHECK(std::equal(block.tokens.begin(), block.tokens.end(), TokensOf(Key(key.second)).begin()));
    }
    REQUIRE(known == expected);
  }
  CHECK(stream.reader.refused().empty());
  CHECK(stream.reader.largest_batch() <= 64);
  CHECK(stream.feed.counts().removed > 1000);
  // And so does one that comes now.
  EventReader late;
  for (const PublishedBatch& batch : stream.feed.Replay(0)) late.Apply(*batch.payload);
  CHECK(late.blocks().size() == stream.reader.blocks().size());
  CHECK(late.refused().empty());
}

TEST_CASE("Events: a subscriber that asks for kept batches gets these, and one that asks for older ones all that is held", "[unit]") {
  FeedOptions options;
  options.ring_batches = 10;
  Stream stream(options);
  stream.feed.Describe(Describe(Numbers(1, 5000)));
  for (std::uint64_t blocks = 100; blocks <= 5000; blocks += 100) {
    stream.Use(Held(Chain(1, blocks)));
    stream.Pass();
  }
  stream.feed.Heartbeat([&](const PublishedBatch& batch) { stream.Take(batch); });
  const std::uint64_t latest = stream.feed.latest();
  CHECK(latest == stream.sent.back().sequence);
  const std::vector<PublishedBatch> kept = stream.feed.Replay(latest - 9);
  REQUIRE(kept.size() == 10);
  for (std::size_t i = 0; i < kept.size(); ++i) CHECK(kept[i].payload == stream.sent[stream.sent.size() - 10 + i].payload);
  CHECK(stream.feed.counts().snapshots == 0);
  // A subscriber that has processed up to the 20th last.
  EventReader behind;
  for (std::size_t i = 0; i + 20 < stream.sent.size(); ++i) behind.Apply(*stream.sent[i].payload);
  const std::uint64_t next = stream.sent[stream.sent.size() - 20].sequence;
  const std::vector<PublishedBatch> snapshot = stream.feed.Replay(next);
  REQUIRE_FALSE(snapshot.empty());
  CHECK(ReadEvents(*snapshot[0].payload)[0].type == "AllBlocksCleared");
  CHECK(snapshot.front().sequence >= next);
  CHECK(snapshot.back().sequence == latest);
  for (std::size_t i = 0; i < snapshot.size(); ++i) {
    CHECK(snapshot[i].sequence == snapshot[0].sequence + i);
    behind.Apply(*snapshot[i].payload);
  }
  CHECK(behind.blocks().size() == 5000);
  CHECK(behind.refused().empty());
  CHECK(stream.feed.counts().snapshots == 1);
  CHECK(stream.feed.Replay(latest + 1).empty());
}

TEST_CASE("Events: the batches that are kept are bounded in bytes, too", "[unit]") {
  FeedOptions options;
  options.ring_bytes = 4096;
  Stream stream(options);
  stream.feed.Describe(Describe(Numbers(1, 1000)));
  stream.Use(Held(Chain(1, 1000)));
  stream.Pass();
  std::size_t bytes = 0;
  const std::vector<PublishedBatch> kept = stream.feed.Replay(stream.feed.latest());
  REQUIRE(kept.size() == 1);
  std::uint64_t oldest = stream.feed.latest();
  while (stream.feed.counts().snapshots == 0) stream.feed.Replay(--oldest);
  for (const PublishedBatch& batch : stream.feed.Replay(oldest + 1)) bytes += batch.payload->size();
  CHECK(bytes <= 4096);
}

TEST_CASE("Events: the numbers of a process begin above all that an earlier one can have used", "[unit]") {
  const std::chrono::system_clock::time_point start{1'700'000'000s};
  std::uint64_t before = mesh::FirstSequence(start);
  CHECK(before == std::uint64_t{1'700'000'000} << 20);
  for (const auto later : {1ms, 2ms, 500ms, 999ms, 1000ms, 5000ms, 86'400'000ms}) {
    const std::uint64_t first = mesh::FirstSequence(start + later);
    CHECK(first > before);
    // A batch takes a microsecond at least
    CHECK(first - mesh::FirstSequence(start) >= static_cast<std::uint64_t>(std::chrono::microseconds(later).count()));
    before = first;
  }
  // As signed numbers, too, for as long as anyone asks.
  CHECK(mesh::FirstSequence(std::chrono::system_clock::time_point(std::chrono::hours(24 * 365 * 200))) < std::uint64_t{1} << 63);
}

TEST_CASE("Events: after a batch that could not be sent, readers are cleared and told everything anew", "[unit]") {
  Stream stream;
  stream.feed.Describe(Describe(Numbers(1, 300)));
  stream.Use(Held(Chain(1, 100)));
  stream.Pass();
  stream.Use(Held(Chain(1, 300)));
  int left = 2;
  CHECK_THROWS_AS(stream.feed.Pass([&](const PublishedBatch& batch) {
    if (left-- == 0) throw std::runtime_error("no memory");
    stream.Take(batch);
  }),
                  std::runtime_error);
  stream.Pass();
  CHECK(stream.reader.blocks().size() == 300);
  CHECK(stream.reader.refused().empty());
}

TEST_CASE("Events: of two variants of a model one is told, and the other once the first has left", "[unit]") {
  Stream stream;
  stream.feed.Describe(Describe(Numbers(1, 2), 1));
  stream.feed.Describe(Describe(Numbers(11, 3), 2));
  HeldBlocks held = Held(Chain(1, 2));
  held.models.push_back({Variant(2), "m", kTokens});
  for (std::uint64_t i = 11; i < 14; ++i) held.blocks.push_back({Key(i), i - 1, static_cast<std::uint32_t>(i - 11), 1, kCpuMedium});
  stream.Use(held);
  stream.Pass();
  CHECK(stream.reader.blocks().size() == 2);
  CHECK(stream.feed.counts().other_variant == 3);
  held.blocks.erase(held.blocks.begin(), held.blocks.begin() + 2);
  stream.Use(held);
  stream.Pass();
  CHECK(stream.reader.blocks().size() == 3);
  CHECK(stream.reader.refused().empty());
}

TEST_CASE("Events: with a model's name only its blocks are told", "[unit]") {
  FeedOptions options;
  options.model = "wanted";
  Stream stream(options);
  stream.feed.Describe(Describe({1}, 1));
  stream.feed.Describe(Describe({2}, 2));
  stream.Use(
      {{{Variant(1), "other", kTokens}, {Variant(2), "wanted", kTokens}}, {{Key(1), 0, 0, 0, kCpuMedium}, {Key(2), 0, 0, 1, kCpuMedium}}});
  stream.Pass();
  REQUIRE(stream.reader.blocks().size() == 1);
  CHECK(stream.reader.blocks().begin()->first.second == 2);
  for (const PublishedBatch& batch : stream.sent) CHECK(*batch.topic == "kv@a@wanted");
}

TEST_CASE("Events: a description of other sizes, or of too many models, is refused and counted", "[unit]") {
  Stream stream;
  stream.feed.Describe(Describe({1, 2}));
  BlockDescription other = Describe({3, 4, 5});
  other.block_tokens = 2 * kTokens;
  stream.feed.Describe(other);
  for (int variant = 2; variant < 100; ++variant) stream.feed.Describe(Describe({1}, static_cast<std::uint8_t>(variant)));
  stream.Use(Held(Chain(1, 2)));
  stream.Pass();
  CHECK(stream.feed.counts().refused == 3 + (98 - (EventFeed::kMaxModels - 1)));
  CHECK(stream.reader.blocks().size() == 2);
}

TEST_CASE("Token table: it holds as many blocks as it may, and forgets what was told longest ago", "[unit]") {
  TokenTable table(kTokens, 100);
  for (std::uint64_t n = 1; n <= 100; ++n) REQUIRE(table.Put(Key(n), TokensOf(Key(n)), ""));
  REQUIRE(table.Put(Key(1), TokensOf(Key(1)), ""));  // told again
  for (std::uint64_t n = 101; n <= 150; ++n) REQUIRE(table.Put(Key(n), TokensOf(Key(n)), ""));
  CHECK(table.size() == 100);
  CHECK(table.forgotten() == 50);
  CHECK(table.Find(Key(1)) != TokenTable::kNone);
  for (std::uint64_t n = 2; n <= 51; ++n) CHECK(table.Find(Key(n)) == TokenTable::kNone);
  for (std::uint64_t n = 52; n <= 150; ++n) {
    const std::uint32_t at = table.Find(Key(n));
    REQUIRE(at != TokenTable::kNone);
    const auto tokens = table.tokens(at);
    CHECK(std::equal(tokens.begin(), tokens.end(), TokensOf(Key(n)).begin()));
  }
}

TEST_CASE("Token table: a block that is held outlives those that are not", "[unit]") {
  TokenTable table(kTokens, 100);
  for (std::uint64_t n = 1; n <= 100; ++n) REQUIRE(table.Put(Key(n), TokensOf(Key(n)), ""));
  for (std::uint64_t n = 1; n <= 20; ++n) table.SetHeld(table.Find(Key(n)), true);
  for (std::uint64_t n = 101; n <= 180; ++n) {
    const TokenTable::PutOutcome put = table.Put(Key(n), TokensOf(Key(n)), "");
    REQUIRE(put);
    REQUIRE(put.forgotten);
    CHECK(table.Find(*put.forgotten) == TokenTable::kNone);
  }
  for (std::uint64_t n = 1; n <= 20; ++n) CHECK(table.Find(Key(n)) != TokenTable::kNone);
  CHECK(table.size() == 100);
  // One that is not held any more is like the others again; what takes a place is not held.
  table.SetHeld(table.Find(Key(1)), false);
  for (std::uint64_t n = 201; n <= 300; ++n) REQUIRE(table.Put(Key(n), TokensOf(Key(n)), ""));
  CHECK(table.Find(Key(1)) == TokenTable::kNone);
  CHECK(table.Find(Key(2)) != TokenTable::kNone);
  // If all are held, one of them goes: the bound holds in any case.
  for (std::uint64_t n = 1; n <= 300; ++n)
    if (const std::uint32_t at = table.Find(Key(n)); at != TokenTable::kNone) table.SetHeld(at, true);
  REQUIRE(table.Put(Key(999), TokensOf(Key(999)), ""));
  CHECK(table.size() == 100);
}

TEST_CASE("Published blocks: a pass looks at what has changed and at what depends on it, and at nothing else", "[unit]") {
  PublishedBlocks published;
  TokenTable tokens(kTokens, 20'000);
  std::size_t stored = 0, removed = 0;
  const auto send = [&](EventBatch& batch, std::size_t more, std::size_t fewer) {
    stored += more;
    removed += fewer;
    static_cast<void>(batch.Finish(0));
  };
  // 100 prefixes of 100 blocks.
  const auto hold = [&](std::uint64_t prefix, std::uint64_t depth, bool here) {
    const std::uint64_t n = 1 + prefix * 100 + depth;
    published.Hold({{Key(n), n - 1, static_cast<std::uint32_t>(depth), 0, kCpuMedium}, here});
  };
  for (std::uint64_t n = 1; n <= 10'000; ++n) REQUIRE(tokens.Put(Key(n), TokensOf(Key(n)), ""));
  for (std::uint64_t prefix = 0; prefix < 100; ++prefix)
    for (std::uint64_t depth = 0; depth < 100; ++depth) hold(prefix, depth, true);
  published.Update(tokens, send);
  CHECK(published.size() == 10'000);
  CHECK(published.looked_at() == 10'000);
  published.Update(tokens, send);
  CHECK(published.looked_at() == 0);
  hold(7, 90, false);
  published.Update(tokens, send);
  CHECK(removed == 10);
  CHECK(published.looked_at() == 10);
  CHECK(published.unreachable() == 9);
  hold(7, 90, true);
  hold(8, 99, false);
  published.Update(tokens, send);
  CHECK(published.looked_at() == 11);
  CHECK(published.size() == 9'999);
  CHECK(stored == 10'010);
}

TEST_CASE("Published blocks: blocks that leave keep no memory, whatever they said of each other", "[unit]") {
  PublishedBlocks published;
  TokenTable tokens(kTokens, 1000);
  const auto send = [](EventBatch& batch, std::size_t, std::size_t) { static_cast<void>(batch.Finish(0)); };
  Random random(11);
  for (std::uint64_t n = 1; n <= 100; ++n) REQUIRE(tokens.Put(Key(n), TokensOf(Key(n)), ""));
  for (int round = 0; round < 300; ++round) {
    // Any parent: itself, one that there is not, one that follows it.
    std::vector<HeldChange> held;
    for (int i = 0; i < 60; ++i) {
      const HeldBlock block{Key(1 + random.Below(100)), 1 + random.Below(120), static_cast<std::uint32_t>(random.Below(4)), 0,
                            random.OneIn(2) ? kCpuMedium : kGpuMedium};
      held.push_back({block, true});
      published.Hold(held.back());
      if (random.OneIn(20)) published.Update(tokens, send);
    }
    if (random.OneIn(2)) published.Update(tokens, send);
    for (HeldChange& change : held) {
      change.here = false;
      published.Hold(change);
      if (random.OneIn(20)) published.Update(tokens, send);
    }
    published.Update(tokens, send);
    REQUIRE(published.size() == 0);
    REQUIRE(published.replicas() == 0);
    REQUIRE(published.nodes() == 0);
  }
}

TEST_CASE("Events: a block that comes back behind another one is removed first, with those after it", "[unit]") {
  Stream stream;
  stream.feed.Describe(Describe({1, 2, 3, 4, 10}));
  std::vector<HeldBlock> blocks = Chain(1, 4);
  blocks.push_back({Key(10), 0, 0, 0, kCpuMedium});
  stream.Use(Held(blocks));
  stream.Pass();
  REQUIRE(stream.reader.blocks().size() == 5);
  const std::size_t before = stream.sent.size();
  // Another worker says that block 2 follows block 10.
  blocks[1].parent_lo = 10;
  HeldChanges changes{false, Held({}).models, {}};
  changes.changes.push_back({{Key(2), 0, 0, 0, kCpuMedium}, false});
  changes.changes.push_back({blocks[1], true});
  stream.feed.Use(changes);
  stream.Pass();
  const std::vector<KvEvent> told = stream.EventsFrom(before);
  REQUIRE(told.size() == 2);
  CHECK(told[0].type == "BlockRemoved");
  CHECK(told[0].hashes == std::vector<std::uint64_t>{4, 3, 2});
  CHECK(told[1].type == "BlockStored");
  CHECK(told[1].parent == std::uint64_t{10});
  CHECK(told[1].hashes == std::vector<std::uint64_t>{2, 3, 4});
  CHECK(stream.reader.blocks().size() == 5);
  CHECK(stream.reader.refused().empty());
}

TEST_CASE("Events: a block whose description was forgotten is removed, and so are those after it", "[unit]") {
  FeedOptions options;
  options.most_blocks = 10;
  Stream stream(options);
  stream.feed.Describe(Describe(Numbers(1, 10)));
  stream.Use(Held(Chain(1, 10)));
  stream.Pass();
  REQUIRE(stream.reader.blocks().size() == 10);
  // All are held, so one of them has to go.
  stream.feed.Describe(Describe({99}));
  stream.Pass();
  CHECK(stream.feed.counts().undescribed == 1);
  CHECK(stream.reader.blocks().size() + 1 + stream.feed.counts().unreachable == 10);
  std::set<EventReader::Key> known;
  for (const auto& [key, block] : stream.reader.blocks()) {
    known.insert(key);
    CHECK(std::equal(block.tokens.begin(), block.tokens.end(), TokensOf(Key(key.second)).begin()));
  }
  EventReader late;
  for (const PublishedBatch& batch : stream.feed.Replay(0)) late.Apply(*batch.payload);
  std::set<EventReader::Key> snapshot;
  for (const auto& [key, block] : late.blocks()) snapshot.insert(key);
  CHECK(snapshot == known);
  CHECK(stream.reader.refused().empty());
}

TEST_CASE("Events configuration: endpoints are of the loopback or files, unless unencrypted events are allowed", "[unit]") {
  mesh::EventSettings good;
  KVM_REQUIRE_OK(mesh::CheckEventSettings(good));
  for (const char* endpoint : {"tcp://127.0.0.1:5557", "tcp://127.0.0.1:*", "tcp://[::1]:5557", "ipc:///run/events.sock"}) {
    INFO(endpoint);
    good.endpoint = endpoint;
    KVM_REQUIRE_OK(mesh::CheckEventSettings(good));
  }
  for (const char* endpoint : {"tcp://0.0.0.0:5557", "tcp://*:5557", "tcp://192.0.2.1:5557", "tcp://[::]:5557"}) {
    INFO(endpoint);
    mesh::EventSettings open;
    open.endpoint = endpoint;
    KVM_CHECK_ERROR(mesh::CheckEventSettings(open), Errc::kInvalidArgument, "--events-unencrypted");
    open.unencrypted = true;
    KVM_REQUIRE_OK(mesh::CheckEventSettings(open));
    open.unencrypted = false;
    open.endpoint = "tcp://127.0.0.1:5557";
    open.replay = endpoint;
    KVM_CHECK_ERROR(mesh::CheckEventSettings(open), Errc::kInvalidArgument, "--events-replay");
  }
  for (const char* endpoint : {"127.0.0.1:5557", "tcp://localhost:5557", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://127.0.0.1:70000",
                               "tcp://127.0.0.1:55x", "udp://127.0.0.1:5557", "ipc://", "ipc:///", "inproc://x", "tcp://:5557"}) {
    INFO(endpoint);
    mesh::EventSettings bad;
    bad.endpoint = endpoint;
    KVM_CHECK_ERROR(mesh::CheckEventSettings(bad), Errc::kInvalidArgument, "is needed");
  }
  mesh::EventSettings bad;
  bad.replay = "tcp://127.0.0.1:5558";
  KVM_CHECK_ERROR(mesh::CheckEventSettings(bad), Errc::kInvalidArgument, "--events is needed");
  bad = {};
  bad.model = "m";
  KVM_CHECK_ERROR(mesh::CheckEventSettings(bad), Errc::kInvalidArgument, "--events is needed");
  bad = {};
  bad.endpoint = bad.replay = "tcp://127.0.0.1:5557";
  KVM_CHECK_ERROR(mesh::CheckEventSettings(bad), Errc::kInvalidArgument, "the same endpoint");
}

TEST_CASE("Events: a description is taken only if every field of it is in range", "[unit]") {
  kvmmesh::Describe good;
  good.set_fingerprint(std::string(32, 'f'));
  good.set_block_tokens(2);
  good.set_keys(std::string(32, 'k'));
  good.set_tokens(std::string(16, 't'));
  const auto description = mesh::DecodeDescription(good);
  KVM_REQUIRE_OK(description);
  CHECK(description->keys.size() == 2);
  CHECK(description->tokens == std::vector<std::uint32_t>(4, 0x74747474));
  const auto refuse = [&](const auto& change, const char* why) {
    kvmmesh::Describe bad = good;
    change(bad);
    KVM_CHECK_ERROR(mesh::DecodeDescription(bad), Errc::kProtocol, why);
  };
  refuse([](auto& bad) { bad.set_fingerprint("short"); }, "32 bytes");
  refuse([](auto& bad) { bad.set_block_tokens(0); }, "0 tokens");
  refuse([](auto& bad) { bad.set_block_tokens(4097); }, "4097 tokens");
  refuse([](auto& bad) { bad.set_keys(""); }, "keys");
  refuse([](auto& bad) { bad.set_keys(std::string(31, 'k')); }, "keys");
  refuse([](auto& bad) { bad.set_tokens(std::string(15, 't')); }, "tokens");
  refuse([](auto& bad) { bad.set_tokens(std::string(12, 't')); }, "3 tokens for 2 blocks");
  refuse([](auto& bad) { bad.set_adapter(std::string(513, 'a')); }, "adapter");
}
