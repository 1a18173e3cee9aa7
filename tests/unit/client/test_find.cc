// Which source a lookup picks, over a registry and mappings made by hand; and what becomes of a
// mapping when its region goes.
#include <algorithm>

#include "client/find/count.h"
#include "client/find/find.h"
#include "client/peers/peers.h"
#include "tests/catch.h"
#include "tests/support/data/segment_builder.h"

namespace {

using namespace kvm;

constexpr std::uint32_t kBlocks = 512;
constexpr std::size_t kGpu = 1;  // the device that imports; DeviceSet::kHost is the other one

class FakeMemory final : public PeerMemory {
 public:
  FakeMemory(MemoryPath path, int* alive) : path_(path), alive_(alive) {
    if (alive_ != nullptr) ++*alive_;
  }
  ~FakeMemory() override {
    if (alive_ != nullptr) --*alive_;
  }
  MemoryPath path() const noexcept override { return path_; }
  bool read_only() const noexcept override { return true; }
  const std::string& detail() const noexcept override { return detail_; }

 private:
  const MemoryPath path_;
  int* const alive_;
  const std::string detail_;
};

// A region whose blocks are all readable, as generation 2.
struct FakeRegion {
  explicit FakeRegion(std::uint64_t identity, std::optional<MemoryPath> to_gpu, bool own = false, int* alive = nullptr) {
    Result<OwnedMemory> table = OwnedMemory::Create("test:generations", GenerationTableBytes(kBlocks));
    KVM_REQUIRE_OK(table);
    memory = std::move(*table);
    writer = GenerationWriter::Format({memory.data(), memory.size()}, kBlocks);
    for (std::uint32_t b = 0; b < kBlocks; ++b) REQUIRE(writer.FinishWrite(b, writer.BeginWrite(b)));
    PeerMapping::Parts parts;
    parts.geometry = Geometry::Contiguous(kBlocks, 64);
    Result<PeerGenerations> generations = MapGenerations(memory.fd(), kBlocks);
    KVM_REQUIRE_OK(generations);
    parts.generations = std::move(*generations);
    parts.payload = std::make_shared<PeerPayload>();
    if (to_gpu) parts.payload->memories[kGpu] = std::make_shared<FakeMemory>(*to_gpu, alive);
    parts.identity = {1, identity};
    parts.devices = 2;
    parts.own = own;
    mapping = std::make_shared<PeerMapping>(std::move(parts));
  }
  OwnedMemory memory;
  GenerationWriter writer;
  std::shared_ptr<PeerMapping> mapping;
};

BlockKey KeyNumber(std::uint64_t n) { return {n * 0x9e3779b97f4a7c15ULL + 1, (n + 7) * 0xc2b2ae3d27d4eb4fULL}; }

// Block n of every region holds key n, as far as `published` says.
class Node {
 public:
  void Add(FakeRegion region, std::uint32_t published = kBlocks) {
    regions_.push_back(std::move(region));
    published_.push_back(published);
  }
  FakeRegion& region(std::size_t row) { return regions_[row]; }

  Match::Impl Find(const FindTarget& target, std::uint32_t keys = kBlocks) {
    Match::Impl found;
    for (const bool nearly_empty : {true, false}) {
      Match::Impl out;
      const CountedKeys counted = Find(target, keys, nearly_empty, out);
      CHECK(counted.found == out.sources.size());
      CHECK(counted.end == out.end);
      if (!nearly_empty) {  // by tags, as by the keys' homes
        CHECK(std::equal(out.sources.begin(), out.sources.end(), found.sources.begin(), found.sources.end(), SameSource));
        CHECK(out.end == found.end);
      }
      found = std::move(out);
    }
    return found;
  }

 private:
  static bool SameSource(const BlockSource& a, const BlockSource& b) {
    return a.region == b.region && a.block == b.block && a.generation == b.generation;
  }

  CountedKeys Find(const FindTarget& target, std::uint32_t keys, bool nearly_empty, Match::Impl& out) {
    test::SegmentBuilder segment(1, 8, 8192);
    for (std::uint32_t n = 0; n < kBlocks; ++n) {
      for (std::uint32_t row = 0; row < regions_.size(); ++row) {
        if (n >= published_[row]) continue;
        IndexEntry entry;
        entry.key = KeyNumber(n);
        entry.generation = 2;
        entry.region = row;
        entry.region_epoch = row + 1;
        entry.block = n;
        segment.Add(entry);
      }
    }
    segment.header().live_entries = nearly_empty ? 8192 / 4 : 8192 / 4 + 1;
    PeerSnapshot snapshot;
    snapshot.registry = *segment.Open();
    REQUIRE(snapshot.registry.nearly_empty() == nearly_empty);
    snapshot.by_row.resize(8);
    for (std::uint32_t row = 0; row < regions_.size(); ++row) snapshot.by_row[row] = {row + 1, regions_[row].mapping};
    std::vector<BlockKey> all;
    for (std::uint32_t n = 0; n < keys; ++n) all.push_back(KeyNumber(n));
    FindIn(snapshot, all, target, out);
    return CountIn(snapshot, all, target);
  }

  std::vector<FakeRegion> regions_;
  std::vector<std::uint32_t> published_;
};

FindTarget ForGpu(std::uint64_t spread = 0) {
  FindTarget target;
  target.device = kGpu;
  target.must_reach = true;
  target.spread = spread;
  return target;
}

std::size_t CountFrom(const Match::Impl& match, std::uint32_t row) {
  return static_cast<std::size_t>(
      std::count_if(match.sources.begin(), match.sources.end(), [&](const BlockSource& source) { return source.region == row; }));
}

TEST_CASE("Find: the nearest source is taken, whatever the order of publication", "[unit]") {
  Node node;
  node.Add(FakeRegion(1, MemoryPath::kHost));
  node.Add(FakeRegion(2, MemoryPath::kPciePeer), 400);
  node.Add(FakeRegion(3, MemoryPath::kNvlink), 300);
  node.Add(FakeRegion(4, MemoryPath::kSameDevice), 200);
  node.Add(FakeRegion(5, std::nullopt));  // not reachable: never
  for (const std::uint64_t spread : {0, 1, 2, 3}) {
    const Match::Impl match = node.Find(ForGpu(spread));
    REQUIRE(match.sources.size() == kBlocks);
    CHECK(match.end == MatchEnd::kComplete);
    for (std::uint32_t n = 0; n < kBlocks; ++n) CHECK(match.sources[n].region == (n < 200 ? 3u : n < 300 ? 2u : n < 400 ? 1u : 0u));
    CHECK(match.mappings.size() == 4);
  }
}

TEST_CASE("Find: sources that are equally near share a long prefix in stretches", "[unit]") {
  Node node;
  for (std::uint64_t identity = 1; identity <= 2; ++identity) node.Add(FakeRegion(identity, MemoryPath::kNvlink));
  node.Add(FakeRegion(3, MemoryPath::kHost));
  const Match::Impl match = node.Find(ForGpu());
  REQUIRE(match.sources.size() == kBlocks);
  CHECK(CountFrom(match, 2) == 0);
  CHECK(CountFrom(match, 0) >= kBlocks / 4);
  CHECK(CountFrom(match, 1) >= kBlocks / 4);
  std::size_t changes = 0;
  for (std::size_t n = 1; n < kBlocks; ++n) changes += match.sources[n].region != match.sources[n - 1].region;
  CHECK(changes <= 4);
  // Different importers begin with different sources.
  CHECK(node.Find(ForGpu(0), 8).sources[0].region != node.Find(ForGpu(1), 8).sources[0].region);
}

TEST_CASE("Find: a block that can't be reached ends the match, unless no destination is given", "[unit]") {
  Node node;
  node.Add(FakeRegion(1, MemoryPath::kNvlink), 10);
  node.Add(FakeRegion(2, std::nullopt), 20);
  const Match::Impl reachable = node.Find(ForGpu());
  CHECK(reachable.sources.size() == 10);
  CHECK(reachable.end == MatchEnd::kUnmapped);
  FindTarget anywhere = ForGpu();
  anywhere.must_reach = false;
  const Match::Impl all = node.Find(anywhere);
  CHECK(all.sources.size() == 20);
  CHECK(all.end == MatchEnd::kAbsent);
  CHECK(CountFrom(all, 0) == 10);  // still the nearest where there is one
}

TEST_CASE("Find: own blocks come first, or not at all", "[unit]") {
  Node node;
  node.Add(FakeRegion(1, MemoryPath::kSameDevice));
  node.Add(FakeRegion(2, MemoryPath::kSameDevice, /*own=*/true), 100);
  FindTarget target = ForGpu();
  CHECK(CountFrom(node.Find(target), 1) == 100);
  target.include_own = false;
  const Match::Impl others = node.Find(target);
  CHECK(others.sources.size() == kBlocks);
  CHECK(CountFrom(others, 1) == 0);
}

TEST_CASE("Find: a stale block ends the match at its place, another replica of it does not", "[unit]") {
  Node node;
  node.Add(FakeRegion(1, MemoryPath::kNvlink));
  static_cast<void>(node.region(0).writer.BeginWrite(37));
  const Match::Impl alone = node.Find(ForGpu());
  CHECK(alone.sources.size() == 37);
  CHECK(alone.end == MatchEnd::kStale);
  node.Add(FakeRegion(2, MemoryPath::kHost));
  const Match::Impl both = node.Find(ForGpu());
  REQUIRE(both.sources.size() == kBlocks);
  CHECK(both.sources[37].region == 1);
  CHECK(CountFrom(both, 1) == 1);
}

TEST_CASE("Find: a withdrawn region's blocks are out of reach at once", "[unit]") {
  Node node;
  node.Add(FakeRegion(1, MemoryPath::kNvlink));
  CHECK(node.Find(ForGpu()).sources.size() == kBlocks);
  node.region(0).mapping->Retire(nullptr);
  CHECK(node.Find(ForGpu()).sources.empty());
}

TEST_CASE("PeerMapping: memory is unmapped after the last import, and then its owner is told", "[unit]") {
  int alive = 0, told = 0;
  FakeRegion region(1, MemoryPath::kNvlink, false, &alive);
  CHECK(alive == 1);
  std::shared_ptr<const PeerPayload> import = region.mapping->payload();
  region.mapping->Retire([&] { ++told; });
  CHECK(region.mapping->payload() == nullptr);
  CHECK_FALSE(region.mapping->PathTo(kGpu).has_value());
  CHECK(alive == 1);
  CHECK(told == 0);
  import.reset();
  CHECK(alive == 0);
  CHECK(told == 1);
  region.mapping->Retire([&] { ++told; });  // nothing is left to wait for
  CHECK(told == 2);
}

TEST_CASE("PeerTable: announcements of an older connection are ignored, and its withdrawals are acknowledged", "[unit]") {
  PeerTable table;
  test::SegmentBuilder segment(1, 4, 64);
  const std::uint64_t first = table.StartConnection(*segment.Open());
  int alive = 0, told = 0;
  const FakeRegion region(1, MemoryPath::kNvlink, false, &alive);
  table.Add(first, 2, 9, region.mapping);
  CHECK(table.mapped_regions() == 1);
  const std::uint64_t second = table.StartConnection(*segment.Open());
  table.Add(first, 2, 9, region.mapping);  // late
  CHECK(table.mapped_regions() == 0);
  table.Add(second, 3, 9, region.mapping);
  CHECK(table.FindAgain(3, 9, "", {1, 1}) == region.mapping);
  table.Remove(first, 3, 9, [&] { ++told; });
  CHECK(table.mapped_regions() == 1);
  CHECK(told == 1);
  table.Remove(second, 3, 8, [&] { ++told; });  // another region epoch
  CHECK(table.mapped_regions() == 1);
  table.Remove(second, 3, 9, [&] { ++told; });
  CHECK(table.mapped_regions() == 0);
  CHECK(table.FindAgain(3, 9, "", {1, 1}) == nullptr);  // nor in the snapshot before
  CHECK(alive == 0);
  CHECK(told == 3);
}

TEST_CASE("PeerTable: the end of one region does not end another one that names the same memory", "[unit]") {
  PeerTable table;
  test::SegmentBuilder segment(1, 4, 64);
  const std::uint64_t connection = table.StartConnection(*segment.Open());
  int alive = 0, told = 0;
  const FakeRegion theirs(7, MemoryPath::kNvlink, false, &alive), own(8, MemoryPath::kSameDevice, true);
  const FakeRegion evil(7, MemoryPath::kNvlink), evil_own(8, MemoryPath::kNvlink);
  table.Add(connection, 0, 1, theirs.mapping);
  table.Add(connection, 1, 2, own.mapping);
  table.Add(connection, 2, 3, evil.mapping);
  table.Add(connection, 3, 4, evil_own.mapping);
  for (const auto& [row, epoch] : {std::pair(2u, 3u), std::pair(3u, 4u)}) table.Remove(connection, row, epoch, [&] { ++told; });
  CHECK(told == 2);
  CHECK(table.Get().current->by_row[0].mapping == theirs.mapping);
  CHECK(table.Get().current->by_row[1].mapping == own.mapping);
  CHECK(theirs.mapping->payload() != nullptr);
  CHECK(own.mapping->payload() != nullptr);
  CHECK(alive == 1);
}

TEST_CASE("PeerTable: a region that is announced anew keeps its mapping, another one's is not taken for it", "[unit]") {
  PeerTable table;
  test::SegmentBuilder segment(1, 4, 64);
  const FakeRegion region(7, MemoryPath::kNvlink);  // of device 1, and of no name
  const std::uint64_t first = table.StartConnection(*segment.Open());
  table.Add(first, 2, 9, region.mapping);
  CHECK(table.FindAgain(2, 9, "", {1, 7}) == region.mapping);
  CHECK(table.FindAgain(3, 10, "", {1, 7}) == nullptr);  // a second region of this connection
  table.StartConnection(*segment.Open());
  CHECK(table.FindAgain(3, 10, "", {1, 7}) == region.mapping);
  CHECK(table.FindAgain(3, 10, "", {2, 7}) == nullptr);  // another file system's inode
  CHECK(table.FindAgain(3, 10, "evil", {1, 7}) == nullptr);
}

TEST_CASE("PeerTable: kvmd's withdrawal of a client's own region leaves its memory to the client", "[unit]") {
  PeerTable table;
  test::SegmentBuilder segment(1, 4, 64);
  const FakeRegion own(7, MemoryPath::kSameDevice, true);
  const std::uint64_t connection = table.StartConnection(*segment.Open());
  table.Add(connection, 2, 9, own.mapping);
  table.Remove(connection, 2, 9, nullptr);
  CHECK(table.Get().current->by_row[2].mapping == nullptr);
  CHECK(own.mapping->payload() != nullptr);
  table.Add(connection, 3, 10, own.mapping);
  table.RemoveByIdentity({1, 7});
  CHECK(own.mapping->payload() == nullptr);
}

TEST_CASE("PeerTable: the mapping of an owner that does not reconnect ends with the old registry", "[unit]") {
  PeerTable table;
  test::SegmentBuilder segment(1, 4, 64);
  const std::uint64_t first = table.StartConnection(*segment.Open());
  int gone_alive = 0, back_alive = 0;
  const FakeRegion gone(1, MemoryPath::kNvlink, false, &gone_alive), back(2, MemoryPath::kNvlink, false, &back_alive);
  table.Add(first, 0, 1, gone.mapping);
  table.Add(first, 1, 1, back.mapping);
  const std::uint64_t second = table.StartConnection(*segment.Open());
  table.Add(second, 0, 1, back.mapping);
  CHECK(gone_alive == 1);  // serves meanwhile
  table.DropPrevious();
  CHECK(gone_alive == 0);
  CHECK(back_alive == 1);
}

}  // namespace
