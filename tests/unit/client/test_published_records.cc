// Which of a region's records are still to be sent to kvmd.
#include <vector>

#include "client/region/published_records.h"
#include "tests/catch.h"

namespace {

using namespace kvm;

constexpr std::uint32_t kBlocks = 10;

struct Published {
  Published() { writer = GenerationWriter::Format(std::as_writable_bytes(std::span(table)), kBlocks); }

  void Publish(std::uint32_t block) {
    const std::uint64_t write = writer.BeginWrite(block);
    REQUIRE(writer.FinishWrite(block, write));
    PublishRecord record{};
    record.block = block;
    record.generation = write + 1;
    records.Set(record);
  }
  std::vector<std::uint32_t> Next(std::size_t most = kBlocks) {
    batch = records.NextDeferred(writer, most);
    std::vector<std::uint32_t> blocks;
    for (const PublishRecord& record : batch) blocks.push_back(record.block);
    return blocks;
  }

  std::vector<std::uint64_t> table = std::vector<std::uint64_t>(GenerationTableBytes(kBlocks) / sizeof(std::uint64_t));
  GenerationWriter writer;
  PublishedRecords records{kBlocks};
  std::vector<PublishRecord> batch;
};

using Blocks = std::vector<std::uint32_t>;

}  // namespace

TEST_CASE("Published records: none is to be sent until one is deferred", "[unit]") {
  Published region;
  region.Publish(3);
  CHECK(region.records.all_sent());
  region.records.Defer();
  CHECK_FALSE(region.records.all_sent());
  CHECK(region.Next() == Blocks{3});
}

TEST_CASE("Published records: a block that is being rewritten is not sent", "[unit]") {
  Published region;
  for (const std::uint32_t block : {1u, 2u, 3u}) region.Publish(block);
  static_cast<void>(region.writer.BeginWrite(2));
  CHECK_FALSE(region.records.Current(2, region.writer).has_value());
  region.records.DeferAll();
  CHECK(region.Next() == Blocks{1, 3});
}

TEST_CASE("Published records: unsent records are returned again, and sent ones are not", "[unit]") {
  Published region;
  for (const std::uint32_t block : {1u, 4u, 7u, 9u}) region.Publish(block);
  region.records.DeferAll();
  CHECK(region.Next(3) == Blocks{1, 4, 7});
  region.records.Sent(region.batch, 1);
  CHECK(region.Next(3) == Blocks{4, 7, 9});
  region.records.Sent(region.batch, 3);
  CHECK(region.records.all_sent());
}

TEST_CASE("Published records: a record that is deferred behind the mark is sent in another round", "[unit]") {
  Published region;
  for (const std::uint32_t block : {1u, 4u, 7u}) region.Publish(block);
  region.records.DeferAll();
  CHECK(region.Next(2) == Blocks{1, 4});
  region.records.Sent(region.batch, 2);
  region.Publish(1);
  region.records.Defer();
  CHECK(region.Next() == Blocks{7});
  region.records.Sent(region.batch, 1);
  CHECK_FALSE(region.records.all_sent());
  CHECK(region.Next() == Blocks{1, 4, 7});
  region.records.Sent(region.batch, 3);
  CHECK(region.records.all_sent());
}

TEST_CASE("Published records: a new connection gets all of them once", "[unit]") {
  Published region;
  for (const std::uint32_t block : {1u, 4u}) region.Publish(block);
  region.records.DeferAll();
  region.records.Defer();
  region.records.Restart();
  CHECK(region.Next() == Blocks{1, 4});
  region.records.Sent(region.batch, 2);
  CHECK(region.records.all_sent());
}
