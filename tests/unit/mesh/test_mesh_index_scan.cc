// What scans of the index say has changed, against exact sets: over inserts, removals, moves of
// entries, regions that come and go, and slots that are being written.
#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <unordered_set>
#include <vector>

#include "client/mesh/scan/index_scan.h"
#include "tests/catch.h"
#include "tests/support/data/index_table.h"
#include "tests/support/data/random.h"

namespace {

using namespace kvm;
using mesh::IndexScan;
using mesh::RowUse;
using mesh::ScanPlan;
using mesh::ScanResult;
using test::IndexTable;
using test::Random;

BlockKey Key(std::uint64_t number) { return {number, number * 0x9e3779b97f4a7c15}; }

IndexEntry Entry(std::uint64_t number, std::uint32_t region, std::uint32_t block) {
  IndexEntry entry;
  entry.key = Key(number);
  entry.region = region;
  entry.region_epoch = region + 1;
  entry.block = block;
  entry.generation = 2;
  entry.parent_lo = Key(number - 1).lo;
  entry.depth = static_cast<std::uint32_t>(number);
  entry.published_s = static_cast<std::uint32_t>(number);
  return entry;
}

// Row 0 is of a worker in host memory, 1 on a GPU, 2 of the host cache; 3 is not used.
std::vector<RowUse> Rows() {
  std::vector<RowUse> rows(4);
  rows[0] = {1, std::nullopt, 1, 0, mesh::kCpuMedium};
  rows[1] = {0, std::nullopt, 2, 0, mesh::kGpuMedium};
  rows[2] = {3, mesh::BlockShape{{}, {}, 4096}, 3, 0, mesh::kCpuMedium};
  return rows;
}

// What a caller knows that has used all results.
struct Known {
  void Use(const ScanResult& found) {
    if (found.all) keys.clear();
    for (const mesh::KeyChange& change : found.keys) {
      const bool is_new = change.here ? keys.insert(change.key).second : keys.erase(change.key) == 1;
      idle += is_new ? 0 : 1;
    }
    if (found.held.all) held.clear();
    for (const mesh::HeldChange& change : found.held.changes) {
      int& count = held[{change.block.key, change.block.medium}];
      count += change.here ? 1 : -1;
      if (change.here) depths[change.block.key] = change.block.depth;
    }
    for (auto each = held.begin(); each != held.end();) each = each->second == 0 ? held.erase(each) : std::next(each);
    for (const mesh::CachedBlock& block : found.unstored) named.push_back(block.key);
  }
  std::unordered_set<BlockKey> keys;
  std::map<std::pair<BlockKey, mesh::Media>, int> held;
  std::map<BlockKey, std::uint32_t> depths;
  std::vector<BlockKey> named;
  int idle = 0;  // changes that said nothing new
};

ScanResult Scan(IndexScan& scan, const IndexTable& table, const std::vector<RowUse>& rows, ScanPlan plan = {}) {
  plan.held = true;
  ScanResult out;
  scan.Read(table.reader, SlotVersions(table.slots.get(), table.count), rows, plan, out);
  return out;
}

}  // namespace

TEST_CASE("Index scan: over many random changes its changes add up to exactly what the index has", "[unit]") {
  Random random(31);
  // Nearly full, so that entries move when others are erased.
  IndexTable table(1024, 900);
  IndexScan scan;
  Known known;
  std::vector<RowUse> rows = Rows();
  // Numbers by region and block
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint64_t> entries;
  const std::uint64_t moves = table.moves.load();
  for (int round = 0; round < 600; ++round) {
    for (std::uint64_t change = 0; change < random.Below(40); ++change) {
      const auto region = static_cast<std::uint32_t>(random.Below(3));
      const auto block = static_cast<std::uint32_t>(random.Below(250));
      if (const auto there = entries.find({region, block}); there != entries.end()) {
        table.Erase(region, block);
        entries.erase(there);
      } else {
        const std::uint64_t number = 1 + random.Below(400);
        if (table.Insert(Entry(number, region, block)) != daemon::kNoSlot) entries[{region, block}] = number;
      }
    }
    // A region ends, and comes back with the same entries.
    if (random.OneIn(10)) rows[random.Below(3)] = RowUse();
    if (random.OneIn(3)) rows = Rows();
    if (random.OneIn(50)) scan.Forget();
    const ScanResult found = Scan(scan, table, rows);
    known.Use(found);
    std::unordered_set<BlockKey> keys;
    std::map<std::pair<BlockKey, mesh::Media>, int> held;
    for (const auto& [at, number] : entries) {
      const RowUse& row = rows[at.first];
      if (row.served_epoch != 0) keys.insert(Key(number));
      if (row.held_epoch != 0) ++held[{Key(number), row.medium}];
    }
    REQUIRE(known.keys == keys);
    REQUIRE(known.held == held);
    REQUIRE(scan.complete());
    const auto first_here = std::find_if(found.keys.begin(), found.keys.end(), [](const auto& each) { return each.here; });
    REQUIRE(std::none_of(first_here, found.keys.end(), [](const auto& each) { return !each.here; }));
  }
  CHECK(known.idle == 0);
  CHECK(table.moves.load() > moves);
  for (const auto& [key, depth] : known.depths) CHECK(depth == key.lo);
}

TEST_CASE("Index scan: what has not changed is not said again", "[unit]") {
  IndexTable table(4096, 4000);
  for (std::uint32_t i = 0; i < 2000; ++i) REQUIRE(table.Insert(Entry(1 + i, 0, i)) != daemon::kNoSlot);
  IndexScan scan;
  const ScanResult first = Scan(scan, table, Rows());
  CHECK(first.all);
  CHECK(first.keys.size() == 2000);
  CHECK(first.held.changes.size() == 2000);
  const ScanResult second = Scan(scan, table, Rows());
  CHECK_FALSE(second.all);
  CHECK(second.keys.empty());
  CHECK(second.held.changes.empty());
  // The same block, written anew.
  const std::uint64_t slot = table.slot_of.at({0, 7});
  IndexEntry again = table.writer.At(slot);
  again.generation += 2;
  table.writer.Update(slot, again);
  CHECK(Scan(scan, table, Rows()).held.changes.empty());
  again.depth += 5;
  table.writer.Update(slot, again);
  const ScanResult moved = Scan(scan, table, Rows());
  CHECK(moved.keys.empty());
  REQUIRE(moved.held.changes.size() == 2);
  CHECK(moved.held.changes[1].block.depth == again.depth);
}

TEST_CASE("Index scan: a slot that is being written counts as it was, and is read by the next scan", "[unit]") {
  IndexTable table(64, 60);
  for (std::uint32_t i = 0; i < 8; ++i) REQUIRE(table.Insert(Entry(1 + i, 0, i)) != daemon::kNoSlot);
  IndexScan scan;
  Known known;
  known.Use(Scan(scan, table, Rows()));
  const std::uint64_t slot = table.slot_of.at({0, 3});
  table.slots[slot].version.fetch_add(1);
  std::vector<RowUse> rows = Rows();
  rows[0].medium = mesh::kGpuMedium;  // every slot of the row is looked at
  known.Use(Scan(scan, table, rows));
  CHECK_FALSE(scan.complete());
  CHECK(known.keys.size() == 8);
  CHECK(known.held.at({Key(4), mesh::kCpuMedium}) == 1);
  table.slots[slot].version.fetch_add(1);
  known.Use(Scan(scan, table, rows));
  CHECK(scan.complete());
  CHECK(known.held.at({Key(4), mesh::kGpuMedium}) == 1);
  CHECK(known.held.size() == 8);
}

TEST_CASE("Index scan: blocks of the host cache are named once while they are there, the oldest first", "[unit]") {
  IndexTable table(256, 250);
  std::set<BlockKey> stored{Key(5)};
  ScanPlan plan;
  plan.stored = [&](const BlockKey& key) { return stored.contains(key); };
  plan.most = 4;
  for (std::uint32_t i = 0; i < 10; ++i) REQUIRE(table.Insert(Entry(10 - i, 2, i)) != daemon::kNoSlot);
  IndexScan scan;
  Known known;
  ScanResult found = Scan(scan, table, Rows(), plan);
  known.Use(found);
  CHECK(found.more_unstored);
  CHECK(known.named == std::vector<BlockKey>{Key(1), Key(2), Key(3), Key(4)});
  // What was left out is named only if all are to be looked at.
  found = Scan(scan, table, Rows(), plan);
  CHECK(found.unstored.empty());
  plan.all_unstored = true;
  found = Scan(scan, table, Rows(), plan);
  known.Use(found);
  CHECK(found.more_unstored);
  known.Use(Scan(scan, table, Rows(), plan));
  CHECK(known.named == std::vector<BlockKey>{Key(1), Key(2), Key(3), Key(4), Key(6), Key(7), Key(8), Key(9), Key(10)});
  found = Scan(scan, table, Rows(), plan);
  CHECK(found.unstored.empty());
  CHECK_FALSE(found.more_unstored);
  // One that has left and come back is named again; one whose slot has only moved is not.
  plan.all_unstored = false;
  table.Erase(2, 9);
  known.Use(Scan(scan, table, Rows(), plan));
  REQUIRE(table.Insert(Entry(1, 2, 9)) != daemon::kNoSlot);
  found = Scan(scan, table, Rows(), plan);
  REQUIRE(found.unstored.size() == 1);
  CHECK(found.unstored[0].key == Key(1));
  CHECK(found.unstored[0].parent_lo == Key(0).lo);
  CHECK(found.unstored[0].shape.block_bytes == 4096);
}
