// The block index against a reference: forced collisions, replicas in order, deletion by moving
// back, and a reader at work meanwhile.
#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "daemon/registry/block_index_writer.h"
#include "tests/catch.h"
#include "tests/support/data/index_table.h"
#include "tests/support/data/random.h"

namespace kvm::daemon {
namespace {

using layout::IndexSlot;
using test::Random;
using Table = test::IndexTable;

// A key whose chain begins at `home`; `n` tells keys of one home apart.
BlockKey KeyAt(std::uint64_t home, std::uint64_t slots, std::uint64_t n) {
  const auto hi = static_cast<std::uint64_t>((static_cast<layout::Uint128>(home) << 64) / slots) + 1 + n;
  return {n * 0x9e3779b97f4a7c15ULL + home, hi};
}

IndexEntry Entry(const BlockKey& key, std::uint32_t region, std::uint32_t block) {
  IndexEntry entry;
  entry.key = key;
  entry.region = region;
  entry.region_epoch = region + 1;
  entry.block = block;
  entry.generation = key.lo ^ (std::uint64_t{region} << 32 | block);
  entry.parent_lo = ~key.lo;
  entry.depth = block + 7;
  entry.published_s = region + block;
  return entry;
}

bool Same(const IndexEntry& a, const IndexEntry& b) {
  return a.key == b.key && a.region == b.region && a.region_epoch == b.region_epoch && a.block == b.block && a.generation == b.generation &&
         a.parent_lo == b.parent_lo && a.depth == b.depth && a.published_s == b.published_s;
}

std::vector<IndexEntry> Find(const IndexReader& reader, const BlockKey& key) {
  std::vector<IndexEntry> out(layout::kMaxReplicas);
  out.resize(reader.Find(key, out));
  return out;
}

// By the tags, as a lookup of many keys does it.
std::vector<IndexHit> FindByTags(const IndexReader& reader, const BlockKey& key) {
  std::vector<IndexHit> out(layout::kMaxReplicas);
  out.resize(reader.Find(key, out, reader.Probe(key)));
  return out;
}

using Reference = std::multimap<BlockKey, IndexEntry>;

// Everything that the headers promise, checked slot by slot.
void CheckAgainst(const Table& table, const Reference& reference, const std::vector<BlockKey>& keys) {
  REQUIRE(table.writer.entries() == reference.size());
  for (const BlockKey& key : keys) {
    const std::vector<IndexEntry> found = Find(table.reader, key);
    const auto [begin, end] = reference.equal_range(key);
    REQUIRE(found.size() == static_cast<std::size_t>(std::distance(begin, end)));
    auto expected = begin;
    for (std::size_t i = 0; i < found.size(); ++i, ++expected) {
      REQUIRE(Same(found[i], expected->second));
      REQUIRE(found[i].more == (i + 1 < found.size()));
    }
    const std::vector<IndexHit> by_tags = FindByTags(table.reader, key);
    REQUIRE(by_tags.size() == found.size());
    for (std::size_t i = 0; i < found.size(); ++i) REQUIRE((by_tags[i].region == found[i].region && by_tags[i].block == found[i].block));
  }
  std::uint64_t occupied = 0;
  for (std::uint64_t slot = 0; slot < table.count; ++slot) {
    const IndexEntry entry = table.writer.At(slot);
    const auto tag = (table.tags[slot / 8].load() >> (slot % 8 * 8)) & 0xFF;
    REQUIRE(tag == (entry.region_epoch == 0 ? 0 : layout::Tag(entry.key)));
    if (entry.region_epoch == 0) continue;
    ++occupied;
    REQUIRE(table.slot_of.at({entry.region, entry.block}) == slot);
    for (std::uint64_t at = layout::Home(entry.key, table.count); at != slot; at = at + 1 == table.count ? 0 : at + 1)
      REQUIRE(table.writer.At(at).region_epoch != 0);
  }
  REQUIRE(occupied == reference.size());
  REQUIRE(table.moves.load() % 2 == 0);
}

TEST_CASE("BlockIndexWriter: agrees with a multimap under random operations", "[unit]") {
  const std::uint64_t seed = GENERATE(1u, 2u, 3u, 4u);
  // Homes: everywhere, or crowded at the end of the table so that chains wrap around.
  const std::uint64_t homes = GENERATE(std::uint64_t{64}, std::uint64_t{5});
  CAPTURE(seed, homes);
  constexpr std::uint64_t kSlots = 64, kMax = 48;
  Table table(kSlots, kMax);
  Random random(seed * 1000 + homes);
  std::vector<BlockKey> keys;
  for (std::uint64_t n = 0; n < 40; ++n) keys.push_back(KeyAt((kSlots - 2 + random.Below(homes)) % kSlots, kSlots, n));
  Reference reference;
  std::uint32_t next_block = 0;
  for (int round = 0; round < 6000; ++round) {
    const bool grow = !table.writer.full() && random.Below(100) < (round / 500 % 2 == 0 ? 70u : 30u);
    if (grow) {
      const BlockKey key = random.Pick(keys);
      if (reference.count(key) == layout::kMaxReplicas) continue;
      const IndexEntry entry = Entry(key, static_cast<std::uint32_t>(random.Below(3)), next_block++);
      REQUIRE(table.Insert(entry) != kNoSlot);
      reference.emplace(key, entry);
    } else if (!reference.empty()) {
      auto victim = std::next(reference.begin(), static_cast<std::ptrdiff_t>(random.Below(reference.size())));
      if (random.OneIn(5)) {
        victim->second.generation += 2;
        table.writer.Update(table.slot_of.at({victim->second.region, victim->second.block}), victim->second);
      } else {
        table.Erase(victim->second.region, victim->second.block);
        reference.erase(victim);
      }
    }
    if (round % 7 == 0) CheckAgainst(table, reference, keys);
  }
  while (!reference.empty()) {
    table.Erase(reference.begin()->second.region, reference.begin()->second.block);
    reference.erase(reference.begin());
    CheckAgainst(table, reference, keys);
  }
}

TEST_CASE("BlockIndexWriter: replicas keep the order of their publication", "[unit]") {
  Table table(64, 48);
  const BlockKey key = KeyAt(10, 64, 0), other = KeyAt(10, 64, 1);
  for (std::uint32_t region = 0; region < 4; ++region) {
    table.Insert(Entry(key, region, 1));
    table.Insert(Entry(other, region, 2));
  }
  table.Erase(1, 1);  // in the middle
  table.Erase(3, 1);  // the last
  table.Insert(Entry(key, 7, 1));
  const std::vector<IndexEntry> found = Find(table.reader, key);
  REQUIRE(found.size() == 3);
  CHECK(found[0].region == 0);
  CHECK(found[1].region == 2);
  CHECK(found[2].region == 7);
  CHECK_FALSE(found[2].more);
  std::uint64_t slots[layout::kMaxReplicas];
  CHECK(table.writer.Replicas(key, slots) == 3);
  CHECK(table.writer.Replicas(KeyAt(10, 64, 2), slots) == 0);
}

TEST_CASE("BlockIndexWriter: keys that all share one home are refused, not searched without end", "[unit]") {
  constexpr std::uint64_t kSlots = 16'384;
  Table table(kSlots, 12'000);
  std::uint32_t inserted = 0;
  for (std::uint32_t n = 0; n < 5000; ++n) inserted += table.Insert(Entry(KeyAt(100, kSlots, n), 0, n)) != kNoSlot;
  CHECK(inserted == kMaxDisplacement + 1);
  // Others go on, behind the crowd as well.
  const BlockKey neighbour = KeyAt(100 + kMaxDisplacement / 2, kSlots, 0);
  REQUIRE(table.Insert(Entry(neighbour, 1, 0)) != kNoSlot);
  CHECK(Find(table.reader, neighbour).size() == 1);
  for (std::uint32_t n = 0; n < inserted; ++n) table.Erase(0, n);
  CHECK(table.writer.entries() == 1);
  CHECK(Find(table.reader, neighbour).size() == 1);
}

TEST_CASE("BlockIndexWriter: chains stay short at full load", "[unit]") {
  constexpr std::uint64_t kEntries = 98'304, kSlots = kEntries * 4 / 3;
  Table table(kSlots, kEntries);
  Random random(42);
  std::uint64_t longest = 0;
  for (std::uint32_t n = 0; n < kEntries; ++n) {
    const BlockKey key{random.Next(), random.Next()};
    const std::uint64_t slot = table.Insert(Entry(key, 0, n));
    REQUIRE(slot != kNoSlot);
    const std::uint64_t home = layout::Home(key, kSlots);
    longest = std::max(longest, slot >= home ? slot - home : slot + kSlots - home);
  }
  CHECK(longest < kMaxDisplacement / 2);
  CHECK(table.writer.full());
}

TEST_CASE("BlockIndexWriter: the tags lead to a key, however far it is from its home", "[unit]") {
  constexpr std::uint64_t kEntries = 49'152, kSlots = kEntries * 4 / 3;
  Table table(kSlots, kEntries);
  Random random(43);
  std::vector<std::pair<BlockKey, std::uint64_t>> placed;
  for (std::uint32_t n = 0; n < kEntries; ++n) {
    const BlockKey key{random.Next(), random.Next()};
    placed.emplace_back(key, table.Insert(Entry(key, 0, n)));
  }
  std::uint64_t far = 0, other_key = 0;
  for (const auto& [key, slot] : placed) {
    const std::uint64_t home = layout::Home(key, kSlots);
    far += slot >= home + 32;
    const std::uint64_t hint = table.reader.Probe(key);
    const std::vector<IndexHit> found = FindByTags(table.reader, key);
    REQUIRE((found.size() == 1 && found[0].block == table.writer.At(slot).block));
    if (slot < home) continue;  // round the end of the table: there the tags say nothing
    REQUIRE((hint >= home && hint <= slot));
    IndexHit only;
    REQUIRE(table.reader.FindOnly(key, hint, only) == (hint == slot));
    if (hint == slot) continue;
    ++other_key;
    REQUIRE(layout::Tag(table.writer.At(hint).key) == layout::Tag(key));
  }
  CHECK(far > 100);
  CHECK(other_key > 100);
  CHECK(other_key < kEntries / 50);
}

TEST_CASE("BlockIndexWriter: a reader never misses a present key and never sees a mixed entry", "[unit]") {
  constexpr std::uint64_t kSlots = 256;
  Table table(kSlots, 192);
  // Keys that stay, on chains from which others come and go.
  std::vector<IndexEntry> staying;
  std::uint32_t block = 0;
  for (std::uint64_t home = 0; home < kSlots; home += 8) {
    // Goes first, so that the next one moves
    table.Insert(Entry(KeyAt(home, kSlots, 1), 1, block++));
    staying.push_back(Entry(KeyAt(home, kSlots, 0), 0, block++));
    table.Insert(staying.back());
  }
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> missed{0}, mixed{0}, reads{0};
  std::thread reader([&] {
    Random random(7);
    while (!stop.load(std::memory_order_relaxed)) {
      const IndexEntry& wanted = staying[random.Below(staying.size())];
      IndexEntry found[layout::kMaxReplicas];
      const std::size_t count = table.reader.Find(wanted.key, found);
      missed += count == 0;
      for (std::size_t i = 0; i < count; ++i) mixed += !Same(found[i], wanted);
      const std::vector<IndexHit> by_tags = FindByTags(table.reader, wanted.key);
      missed += by_tags.empty();
      for (const IndexHit& hit : by_tags) mixed += hit.region != wanted.region || hit.block != wanted.block;
      IndexEntry any;
      if (table.reader.ReadSlot(random.Below(kSlots), any)) mixed += !Same(any, Entry(any.key, any.region, any.block));
      ++reads;
    }
  });
  Random random(8);
  std::vector<std::uint32_t> present;
  for (std::uint32_t i = 0; i < 2 * staying.size(); i += 2) present.push_back(i);
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
  for (int round = 0; round % 64 != 0 || std::chrono::steady_clock::now() < end; ++round) {
    if (!present.empty() && (table.writer.full() || random.OneIn(2))) {
      std::uint32_t& victim = random.Pick(present);
      table.Erase(1, victim);
      victim = present.back();
      present.pop_back();
    } else {
      table.Insert(Entry(KeyAt(random.Below(kSlots), kSlots, 1 + random.Below(1000)), 1, block));
      present.push_back(block++);
    }
  }
  stop = true;
  reader.join();
  INFO(reads.load() << " reads, " << table.moves.load() / 2 << " moves");
  CHECK(table.moves.load() > 1000);
  CHECK(reads.load() > 1000);
  CHECK(missed.load() == 0);
  CHECK(mixed.load() == 0);
}

}  // namespace
}  // namespace kvm::daemon
