// The disk cache's index against an exact model, its growth, and the bytes of its records.
#include <map>
#include <set>

#include "client/mesh/disk/disk_index.h"
#include "client/mesh/disk/record.h"
#include "proto/base/random.h"
#include "tests/catch.h"
#include "tests/support/mesh/disk_blocks.h"

namespace {

using namespace kvm;
using mesh::DiskBlock;
using mesh::DiskIndex;
using mesh::RecordBytes;
using policy::PolicyKind;

DiskBlock Block(std::uint64_t prompt, std::uint32_t depth, std::uint64_t segment, std::uint64_t offset, std::uint64_t bytes = 4096) {
  return {test::DiskKey(prompt, depth), depth == 0 ? 0 : test::DiskKey(prompt, depth - 1).lo, depth, bytes, segment, offset};
}

}  // namespace

TEST_CASE("Disk index: it has what a map of the same blocks has, with the bytes of each segment", "[unit]") {
  for (const PolicyKind kind : policy::kAllPolicies) {
    INFO(policy::PolicyName(kind));
    DiskIndex index(kind, 16);
    std::map<BlockKey, DiskBlock> model;
    SplitMix random(1);
    for (int step = 0; step < 20'000; ++step) {
      const std::uint64_t prompt = random.Below(40);
      const auto depth = static_cast<std::uint32_t>(random.Below(12));
      const BlockKey key = test::DiskKey(prompt, depth);
      switch (random.Below(8)) {
        case 0:
          index.Erase(key);
          model.erase(key);
          break;
        case 1: {
          // At another place it is another record.
          index.Erase(Block(prompt, depth, 99, 1));
          break;
        }
        case 2:
          if (const auto gone = index.Evict()) model.erase(gone->key);
          break;
        case 3: {
          std::vector<BlockKey> path;
          for (std::uint32_t i = 0; i <= depth; ++i) path.push_back(test::DiskKey(prompt, i));
          index.Use(path);
          break;
        }
        default: {
          const DiskBlock block = Block(prompt, depth, random.Below(6), random.Below(100) * 8192, 1 + random.Below(9000));
          index.Insert({&block, 1});
          model[key] = block;
        }
      }
      REQUIRE(index.blocks() == model.size());
    }
    std::uint64_t bytes = 0;
    std::map<std::uint64_t, std::size_t> in_segment;
    for (const auto& [key, block] : model) {
      const DiskBlock* found = index.Find(key);
      REQUIRE(found != nullptr);
      CHECK(found->segment == block.segment);
      CHECK(found->offset == block.offset);
      bytes += RecordBytes(block.block_bytes);
      ++in_segment[block.segment];
    }
    CHECK(index.bytes() == bytes);
    for (std::uint64_t segment = 0; segment < 6; ++segment) CHECK(index.BlocksOf(segment).size() == in_segment[segment]);
    while (index.Evict()) continue;
    CHECK(index.blocks() == 0);
    CHECK(index.bytes() == 0);
  }
}

TEST_CASE("Disk index: what it says has changed leads from one set of keys to the next", "[unit]") {
  DiskIndex index(PolicyKind::kLru, 16);
  std::set<BlockKey> told;
  const auto take = [&](bool all) {
    const mesh::DiskChanges changes = index.TakeChanges(all);
    if (changes.all) told.clear();
    for (const mesh::KeyChange& change : changes.keys) {
      if (change.here)
        told.insert(change.key);
      else
        told.erase(change.key);
    }
    return changes.all;
  };
  CHECK(take(false));  // the first time
  SplitMix random(4);
  std::size_t wrong = 0;
  for (int step = 0; step < 20'000; ++step) {
    const std::uint64_t prompt = random.Below(40);
    const auto depth = static_cast<std::uint32_t>(random.Below(12));
    if (random.Below(3) == 0) {
      static_cast<void>(index.Evict());
    } else {
      const DiskBlock block = Block(prompt, depth, random.Below(6), random.Below(100) * 8192);
      index.Insert({&block, 1});
    }
    if (random.Below(20) != 0) continue;
    const bool all = random.Below(10) == 0;
    CHECK(take(all) == all);
    wrong += told.size() == index.blocks() ? 0 : 1;
    for (const BlockKey& key : told) wrong += index.Find(key) != nullptr ? 0 : 1;
  }
  CHECK(wrong == 0);
  // More than are remembered: all of them are told.
  take(false);
  for (std::uint64_t prompt = 100; prompt < 100 + DiskIndex::kMaxChanges; ++prompt) {
    const DiskBlock block = Block(prompt, 0, 1, 0);
    index.Insert({&block, 1});
    index.Erase(block.key);
  }
  CHECK(take(false));
  CHECK(told.size() == index.blocks());
}

TEST_CASE("Disk index: the segment that is removed is the one that frees most", "[unit]") {
  DiskIndex index(PolicyKind::kLru);
  CHECK_FALSE(index.EmptiestSegment());
  index.SetSegment(1, 100'000);
  index.SetSegment(2, 100'000);
  const std::vector<DiskBlock> blocks{Block(1, 0, 1, 4096), Block(2, 0, 2, 4096), Block(2, 1, 2, 12288)};
  index.Insert(blocks);
  CHECK(index.EmptiestSegment() == 1u);
  index.Erase(blocks[1].key);
  index.Erase(blocks[2].key);
  CHECK(index.EmptiestSegment() == 2u);
  CHECK(index.file_bytes() == 200'000);
  // A segment that is full to the last byte frees nothing.
  index.SetSegment(1, 4096 + RecordBytes(4096));
  index.RemoveSegment(2);
  CHECK_FALSE(index.EmptiestSegment());
}

TEST_CASE("Disk record: headers come back as they were written, and no changed byte passes", "[unit]") {
  mesh::RecordHeader header;
  header.segment = 5;
  header.offset = 12288;
  header.key = test::DiskKey(1, 2);
  header.parent_lo = 77;
  header.depth = 2;
  header.shape = test::DiskShape(4096);
  header.shape.shard = {1, 2, 3, 4, 5};
  header.checksum = 99;
  const mesh::AlignedBuffer memory(4096);
  const std::span<std::byte> page = memory.page();
  mesh::Encode(header, page);
  const auto decoded = mesh::DecodeRecordHeader(page);
  KVM_REQUIRE_OK(decoded);
  CHECK(decoded->segment == 5);
  CHECK(decoded->offset == 12288);
  CHECK(decoded->key == header.key);
  CHECK(decoded->parent_lo == 77);
  CHECK(decoded->depth == 2);
  CHECK(decoded->shape == header.shape);
  CHECK(decoded->checksum == 99);
  for (std::byte& byte : page) {
    byte ^= std::byte{4};
    if (mesh::DecodeRecordHeader(page)) FAIL("a changed byte passed");
    byte ^= std::byte{4};
  }
  CHECK_FALSE(mesh::DecodeRecordHeader(page.first(4095)));
  CHECK_FALSE(mesh::DecodeSegmentHeader(page));
  mesh::Encode(mesh::SegmentHeader{9, "uid:1"}, page);
  const auto segment = mesh::DecodeSegmentHeader(page);
  KVM_REQUIRE_OK(segment);
  CHECK(segment->segment == 9);
  CHECK(segment->domain == "uid:1");
  CHECK_FALSE(mesh::DecodeRecordHeader(page));
  for (std::byte& byte : page) {
    byte ^= std::byte{4};
    if (mesh::DecodeSegmentHeader(page)) FAIL("a changed byte passed");
    byte ^= std::byte{4};
  }
}

TEST_CASE("Disk record: a block of no bytes, of too many, or of an impossible shard is none", "[unit]") {
  const mesh::AlignedBuffer memory(4096);
  for (const std::uint64_t bytes : {std::uint64_t{0}, (std::uint64_t{256} << 20) + 1, ~std::uint64_t{0}}) {
    mesh::RecordHeader header;
    header.shape = test::DiskShape(bytes);
    mesh::Encode(header, memory.page());
    CHECK_FALSE(mesh::DecodeRecordHeader(memory.page()));
  }
  mesh::RecordHeader header;
  header.shape = test::DiskShape(1);
  header.shape.shard.tp_rank = 1;
  mesh::Encode(header, memory.page());
  CHECK_FALSE(mesh::DecodeRecordHeader(memory.page()));
}
