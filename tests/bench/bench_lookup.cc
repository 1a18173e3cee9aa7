// Index lookup straight from shared memory: 512 present keys, 512 absent keys, tables of several
// sizes.
#include <benchmark/benchmark.h>

#include <map>
#include <memory>
#include <vector>

#include "tests/support/data/random.h"
#include "tests/support/data/segment_builder.h"

namespace {

using namespace kvm;

constexpr std::size_t kKeys = 512;

// A table of 2 * `entries` slots with `entries` keys, made once per size.
struct Table {
  explicit Table(std::uint64_t entries) : segment(1, 1, 2 * entries, HugePages::kTry) {
    test::Random random(entries);
    for (std::uint64_t i = 0; i < entries; ++i) {
      IndexEntry entry;
      entry.key = {random.Next(), random.Next()};
      entry.region_epoch = 1;
      entry.generation = 2;
      entry.block = static_cast<std::uint32_t>(i);
      segment.Add(entry);
      keys.push_back(entry.key);
    }
    view = *segment.Open();
  }
  test::SegmentBuilder segment;
  std::vector<BlockKey> keys;
  RegistryView view;
};

Table& TableOf(std::uint64_t entries) {
  static std::map<std::uint64_t, std::unique_ptr<Table>> tables;
  std::unique_ptr<Table>& table = tables[entries];
  if (!table) table = std::make_unique<Table>(entries);
  return *table;
}

void Find(benchmark::State& state, bool present) {
  Table& table = TableOf(static_cast<std::uint64_t>(state.range(0)));
  test::Random random(7);
  std::vector<BlockKey> keys(kKeys);
  IndexEntry entries[layout::kMaxReplicas];
  for (auto _ : state) {
    state.PauseTiming();
    for (BlockKey& key : keys) key = present ? random.Pick(table.keys) : BlockKey{random.Next(), random.Next()};
    state.ResumeTiming();
    const IndexReader& index = table.view.index();
    constexpr std::size_t kAhead = 16;
    for (std::size_t i = 0; i < kAhead; ++i) index.Prefetch(keys[i]);
    std::size_t found = 0;
    for (std::size_t i = 0; i < kKeys; ++i) {
      if (i + kAhead < kKeys) index.Prefetch(keys[i + kAhead]);
      found += index.Find(keys[i], std::span<IndexEntry>(entries));
    }
    benchmark::DoNotOptimize(found);
    if (found != (present ? kKeys : 0)) state.SkipWithError("wrong number of keys found");
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(kKeys));
}

void BM_FindPresent(benchmark::State& state) { Find(state, true); }
void BM_FindAbsent(benchmark::State& state) { Find(state, false); }
BENCHMARK(BM_FindPresent)->Arg(10000)->Arg(1000000)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_FindAbsent)->Arg(10000)->Arg(1000000)->Unit(benchmark::kMicrosecond);

}  // namespace
