// The read side of a registry segment: damaged headers are refused, and whatever the tables hold,
// reads are bounded and stay inside.
#include <array>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "proto/shm/registry_view.h"
#include "tests/catch.h"
#include "tests/support/data/model_specs.h"
#include "tests/support/data/segment_builder.h"

namespace {

using namespace kvm;
using test::SegmentBuilder;

constexpr std::uint64_t kSlots = 64;
constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();

IndexEntry Entry(std::uint64_t home, std::uint64_t id, std::uint32_t block = 0) {
  IndexEntry entry;
  // The high half decides the home slot: the middle of slot `home`'s range.
  entry.key = {id, (kMax64 / kSlots) * home + kMax64 / kSlots / 2};
  entry.generation = 2;
  entry.parent_lo = 77;
  entry.region = 1;
  entry.region_epoch = 5;
  entry.block = block;
  entry.depth = 3;
  entry.published_s = 9;
  return entry;
}

std::vector<IndexEntry> Find(const RegistryView& view, const BlockKey& key, std::size_t limit = layout::kMaxReplicas) {
  std::vector<IndexEntry> out(limit);
  out.resize(view.index().Find(key, std::span<IndexEntry>(out)));
  return out;
}

}  // namespace

TEST_CASE("Registry view: a whole segment opens and shows its header", "[unit]") {
  SegmentBuilder segment(2, 3, kSlots);
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  CHECK(view->model_rows() == 2);
  CHECK(view->region_rows() == 3);
  CHECK(view->index().slots() == kSlots);
  CHECK(view->state() == layout::SegmentState::kLive);
  CHECK(std::string(view->header().domain) == "test");
}

TEST_CASE("Registry view: damage to any header field is refused", "[unit]") {
  using Header = layout::RegistryHeader;
  const std::vector<std::pair<std::string, std::function<void(Header&)>>> damages = {
      {"magic", [](Header& h) { h.magic ^= 1; }},
      {"magic of nothing", [](Header& h) { h.magic = 0; }},
      {"header_bytes", [](Header& h) { h.header_bytes = 64; }},
      {"segment_bytes above the memory", [](Header& h) { h.segment_bytes += 1; }},
      {"segment_bytes below the tables", [](Header& h) { h.segment_bytes -= 1; }},
      {"segment_bytes 0", [](Header& h) { h.segment_bytes = 0; }},
      {"domain without an end", [](Header& h) { std::memset(h.domain, 'd', sizeof(h.domain)); }},
      {"model_rows_offset inside the header", [](Header& h) { h.model_rows_offset = 0; }},
      {"model_rows_offset unaligned", [](Header& h) { h.model_rows_offset += 8; }},
      {"model_rows_offset outside", [](Header& h) { h.model_rows_offset = h.segment_bytes + 64; }},
      {"model_rows_offset at the end of 64 bits", [](Header& h) { h.model_rows_offset = kMax64 - 63; }},
      {"region_rows_offset inside the header", [](Header& h) { h.region_rows_offset = 64; }},
      {"region_rows_offset unaligned", [](Header& h) { h.region_rows_offset += 32; }},
      {"region_rows_offset outside", [](Header& h) { h.region_rows_offset = h.segment_bytes; }},
      {"index_offset inside the header", [](Header& h) { h.index_offset = 4032; }},
      {"index_offset unaligned", [](Header& h) { h.index_offset += 1; }},
      {"index_offset outside", [](Header& h) { h.index_offset = h.segment_bytes; }},
      {"tags_offset inside the header", [](Header& h) { h.tags_offset = 64; }},
      {"tags_offset unaligned", [](Header& h) { h.tags_offset += 8; }},
      {"tags_offset outside", [](Header& h) { h.tags_offset = h.segment_bytes; }},
      {"model_rows too many", [](Header& h) { h.model_rows = 0xffffffff; }},
      {"region_rows too many", [](Header& h) { h.region_rows = 0xffffffff; }},
      {"index_slots too many", [](Header& h) { h.index_slots += 1; }},
      {"index_slots overflowing", [](Header& h) { h.index_slots = (kMax64 / 64) + 1; }},
      {"index_slots 0", [](Header& h) { h.index_slots = 0; }},
      {"index_entries no smaller than index_slots", [](Header& h) { h.index_entries = h.index_slots; }},
  };
  for (const auto& [name, damage] : damages) {
    SegmentBuilder segment(2, 3, kSlots);
    damage(segment.header());
    INFO(name);
    KVM_CHECK_ERROR(segment.Open(), Errc::kProtocol, "registry segment");
  }
}

TEST_CASE("Registry view: another layout version is refused as such", "[unit]") {
  for (const std::uint32_t version : {0u, layout::kLayoutVersion + 1, 0xffffffffu}) {
    SegmentBuilder segment(1, 1, kSlots);
    segment.header().layout_version = version;
    KVM_CHECK_ERROR(segment.Open(), Errc::kVersionMismatch, std::to_string(version));
  }
}

TEST_CASE("Registry view: memory smaller than a header is refused", "[unit]") {
  const Result<OwnedMemory> small = OwnedMemory::Create("kvm:test", layout::kHeaderBytes - 1);
  KVM_REQUIRE_OK(small);
  Result<MappedMemory> mapped = MappedMemory::Attach(small->fd());
  KVM_REQUIRE_OK(mapped);
  KVM_CHECK_ERROR(RegistryView::Open(std::move(*mapped)), Errc::kProtocol, "too small");
}

TEST_CASE("Registry view: rows are read whole, free and absent ones are not", "[unit]") {
  SegmentBuilder segment(2, 3, kSlots);
  segment.SetModel(1, test::LlamaSpec());
  segment.SetRegion(2, 7, "pool");
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  layout::ModelInfo model;
  layout::RegionInfo region;
  CHECK_FALSE(view->ReadModel(0, model));
  CHECK_FALSE(view->ReadModel(2, model));
  CHECK_FALSE(view->ReadModel(~0u, model));
  CHECK_FALSE(view->ReadRegion(0, region));
  CHECK_FALSE(view->ReadRegion(3, region));
  REQUIRE(view->ReadModel(1, model));
  const Result<ModelSpec> spec = ModelSpec::FromCanonical({model.spec, model.spec_bytes});
  KVM_REQUIRE_OK(spec);
  CHECK(*spec == test::LlamaSpec());
  REQUIRE(view->ReadRegion(2, region));
  CHECK(region.region_epoch == 7);
  CHECK(std::string(region.name) == "pool");
}

TEST_CASE("Registry view: a model row with an impossible length is not readable", "[unit]") {
  SegmentBuilder segment(1, 1, kSlots);
  layout::ModelInfo info{};
  info.state = 1;
  info.spec_bytes = sizeof(info.spec) + 1;
  segment.model(0).Write(info);
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  CHECK_FALSE(view->ReadModel(0, info));
}

TEST_CASE("Registry view: a region name without an end is cut", "[unit]") {
  SegmentBuilder segment(1, 1, kSlots);
  layout::RegionInfo info{};
  info.state = 1;
  std::memset(info.name, 'n', sizeof(info.name));
  segment.region(0).Write(info);
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  REQUIRE(view->ReadRegion(0, info));
  CHECK(std::string(info.name) == std::string(63, 'n'));
}

TEST_CASE("Registry view: a row whose writer died in the middle is unreadable, without hanging", "[unit]") {
  SegmentBuilder segment(1, 1, kSlots);
  segment.SetModel(0, test::LlamaSpec());
  segment.SetRegion(0, 7, "pool");
  // The version word comes first in a row.
  for (void* row : {static_cast<void*>(&segment.model(0)), static_cast<void*>(&segment.region(0))}) {
    static_cast<std::atomic<std::uint64_t>*>(row)->fetch_add(1);
  }
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  layout::ModelInfo model;
  layout::RegionInfo region;
  CHECK_FALSE(view->ReadModel(0, model));
  CHECK_FALSE(view->ReadRegion(0, region));
}

TEST_CASE("Registry view: an entry is found with all its fields", "[unit]") {
  SegmentBuilder segment(1, 2, kSlots);
  const IndexEntry entry = Entry(10, 1, 42);
  REQUIRE(segment.Add(entry) == 10);
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  const std::vector<IndexEntry> found = Find(*view, entry.key);
  REQUIRE(found.size() == 1);
  CHECK(found[0].key == entry.key);
  CHECK(found[0].generation == 2);
  CHECK(found[0].parent_lo == 77);
  CHECK(found[0].region == 1);
  CHECK(found[0].region_epoch == 5);
  CHECK(found[0].block == 42);
  CHECK(found[0].depth == 3);
  CHECK(found[0].published_s == 9);
  CHECK_FALSE(found[0].more);
  IndexEntry at;
  CHECK(view->index().ReadSlot(10, at));
  CHECK_FALSE(view->index().ReadSlot(11, at));
  CHECK_FALSE(view->index().ReadSlot(kSlots, at));
  CHECK_FALSE(view->index().ReadSlot(kMax64, at));
}

TEST_CASE("Registry view: colliding keys are told apart, round the end of the table too", "[unit]") {
  SegmentBuilder segment(1, 2, kSlots);
  for (std::uint64_t id = 0; id < 10; ++id) REQUIRE(segment.Add(Entry(kSlots - 3, id, static_cast<std::uint32_t>(id))) < kSlots);
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  for (std::uint64_t id = 0; id < 10; ++id) {
    const std::vector<IndexEntry> found = Find(*view, Entry(kSlots - 3, id).key);
    INFO("id " << id);
    REQUIRE(found.size() == 1);
    CHECK(found[0].block == id);
  }
  CHECK(Find(*view, Entry(kSlots - 3, 10).key).empty());
  CHECK(Find(*view, Entry(20, 0).key).empty());
}

TEST_CASE("Registry view: replicas come in order of publication, as many as fit", "[unit]") {
  SegmentBuilder segment(1, 2, kSlots);
  for (std::uint32_t replica = 0; replica < 5; ++replica) {
    REQUIRE(segment.Add(Entry(30, 1, replica)) < kSlots);
    REQUIRE(segment.Add(Entry(30, 100 + replica)) < kSlots);
  }
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  for (const std::size_t limit : {std::size_t{1}, std::size_t{2}, std::size_t{5}, std::size_t{8}, std::size_t{20}}) {
    const std::vector<IndexEntry> found = Find(*view, Entry(30, 1).key, limit);
    REQUIRE(found.size() == std::min<std::size_t>(limit, 5));
    for (std::uint32_t i = 0; i < found.size(); ++i) {
      CHECK(found[i].block == i);
      CHECK(found[i].more == (i < 4));
    }
  }
  CHECK(Find(*view, Entry(30, 1).key, 0).empty());
}

TEST_CASE("Registry view: never more than the maximum of replicas, even from a damaged table", "[unit]") {
  SegmentBuilder segment(1, 2, kSlots);
  for (std::uint32_t replica = 0; replica < 20; ++replica) REQUIRE(segment.Add(Entry(30, 1, replica)) < kSlots);
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  CHECK(Find(*view, Entry(30, 1).key, 64).size() == layout::kMaxReplicas);
}

TEST_CASE("Registry view: a slot whose writer died is a miss, its neighbours are found", "[unit]") {
  SegmentBuilder segment(1, 2, kSlots);
  const std::uint64_t dead = segment.Add(Entry(5, 1));
  REQUIRE(segment.Add(Entry(5, 2)) < kSlots);
  segment.slot(dead).version.fetch_add(1);
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  CHECK(Find(*view, Entry(5, 1).key).empty());
  CHECK(Find(*view, Entry(5, 2).key).size() == 1);
  IndexEntry at;
  CHECK_FALSE(view->index().ReadSlot(dead, at));
}

TEST_CASE("Registry view: a miss ends even if entries are being moved for ever", "[unit]") {
  SegmentBuilder segment(1, 2, kSlots);
  REQUIRE(segment.Add(Entry(5, 1)) < kSlots);
  segment.header().index_moves.store(1);
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  CHECK(Find(*view, Entry(5, 1).key).size() == 1);
  CHECK(Find(*view, Entry(5, 2).key).empty());
}

TEST_CASE("Registry view: a table without an empty slot ends the search", "[unit]") {
  SegmentBuilder segment(1, 2, kSlots);
  for (std::uint64_t id = 0; id < kSlots; ++id) REQUIRE(segment.Add(Entry(id, id)) < kSlots);
  REQUIRE(segment.Add(Entry(0, 1000)) == kSlots);
  const Result<RegistryView> view = segment.Open();
  KVM_REQUIRE_OK(view);
  CHECK(Find(*view, Entry(0, 1000).key).empty());
  CHECK(Find(*view, Entry(63, 63).key).size() == 1);
}

TEST_CASE("Registry view: the mapping lives as long as any copy of the view", "[unit]") {
  RegistryView copy;
  CHECK_FALSE(copy);
  {
    SegmentBuilder segment(1, 2, kSlots);
    REQUIRE(segment.Add(Entry(5, 1)) < kSlots);
    const Result<RegistryView> view = segment.Open();
    KVM_REQUIRE_OK(view);
    copy = *view;
  }
  REQUIRE(copy);
  CHECK(Find(copy, Entry(5, 1).key).size() == 1);
}

TEST_CASE("Registry view: an index reader without slots finds no key", "[unit]") {
  std::array<IndexEntry, 1> out;
  CHECK(IndexReader().Find(BlockKey{1, 2}, std::span<IndexEntry>(out)) == 0);
  CHECK_FALSE(IndexReader().ReadSlot(0, out[0]));
}
