// The generation protocol: which values mean readable, who wins among writers, what a reader may
// trust (I2, I3).
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "proto/shm/generation_table.h"
#include "tests/catch.h"

namespace {

using namespace kvm;

constexpr std::uint32_t kBlocks = 4;

// A table in ordinary memory, aligned as a mapping is.
struct Table {
  explicit Table(std::uint32_t blocks = kBlocks)
      : words(GenerationTableBytes(blocks) / 8, 0), writer(GenerationWriter::Format(bytes(), blocks)) {}
  std::span<std::byte> bytes() { return std::as_writable_bytes(std::span(words)); }
  GenerationHeader& header() { return *reinterpret_cast<GenerationHeader*>(words.data()); }

  std::vector<std::uint64_t> words;
  GenerationWriter writer;
};

}  // namespace

TEST_CASE("Generations: a new table has no readable block", "[unit]") {
  Table table;
  const Result<GenerationReader> reader = GenerationReader::Open(table.bytes(), kBlocks);
  KVM_REQUIRE_OK(reader);
  CHECK(reader->block_count() == kBlocks);
  for (std::uint32_t block = 0; block < kBlocks; ++block) CHECK_FALSE(IsReadable(reader->Current(block)));
}

TEST_CASE("Generations: even above 0 is readable, odd and 0 are not", "[unit]") {
  CHECK_FALSE(IsReadable(0));
  CHECK_FALSE(IsReadable(1));
  CHECK(IsReadable(2));
  CHECK_FALSE(IsReadable(3));
  CHECK(IsReadable(~std::uint64_t{1}));
}

TEST_CASE("Generations: a write goes from odd to the next even value, each larger than all before", "[unit]") {
  Table table;
  Generation last = 0;
  for (int round = 0; round < 10; ++round) {
    const Generation write = table.writer.BeginWrite(1);
    CHECK((write & 1) == 1);
    CHECK(write > last);
    CHECK(table.writer.Current(1) == write);
    CHECK(table.writer.FinishWrite(1, write));
    CHECK(table.writer.Current(1) == write + 1);
    CHECK(IsReadable(table.writer.Current(1)));
    last = write + 1;
  }
}

TEST_CASE("Generations: blocks are independent", "[unit]") {
  Table table;
  const Generation write = table.writer.BeginWrite(2);
  CHECK(table.writer.FinishWrite(2, write));
  CHECK(table.writer.Current(1) == 0);
  CHECK(table.writer.Current(3) == 0);
}

TEST_CASE("Generations: a write that a later one overtook can't finish", "[unit]") {
  Table table;
  const Generation first = table.writer.BeginWrite(0);
  const Generation second = table.writer.BeginWrite(0);
  CHECK(second > first);
  CHECK((second & 1) == 1);
  CHECK_FALSE(table.writer.FinishWrite(0, first));
  CHECK(table.writer.Current(0) == second);
  CHECK(table.writer.FinishWrite(0, second));
  CHECK_FALSE(table.writer.FinishWrite(0, first));
}

TEST_CASE("Generations: a write finishes once", "[unit]") {
  Table table;
  const Generation write = table.writer.BeginWrite(0);
  CHECK(table.writer.FinishWrite(0, write));
  CHECK_FALSE(table.writer.FinishWrite(0, write));
  CHECK(table.writer.Current(0) == write + 1);
}

TEST_CASE("Generations: an even value can't be finished", "[unit]") {
  Table table;
  CHECK_FALSE(table.writer.FinishWrite(0, 0));
  const Generation write = table.writer.BeginWrite(0);
  REQUIRE(table.writer.FinishWrite(0, write));
  CHECK_FALSE(table.writer.FinishWrite(0, write + 1));
  CHECK(table.writer.Current(0) == write + 1);
}

TEST_CASE("Generations: a reader's check fails from BeginWrite on and for ever", "[unit]") {
  Table table;
  const Result<GenerationReader> reader = GenerationReader::Open(table.bytes(), kBlocks);
  KVM_REQUIRE_OK(reader);
  const Generation write = table.writer.BeginWrite(3);
  CHECK_FALSE(reader->StillValid(3, write + 1));
  REQUIRE(table.writer.FinishWrite(3, write));
  CHECK(reader->StillValid(3, write + 1));
  const Generation next = table.writer.BeginWrite(3);
  CHECK_FALSE(reader->StillValid(3, write + 1));
  REQUIRE(table.writer.FinishWrite(3, next));
  CHECK_FALSE(reader->StillValid(3, write + 1));
  CHECK(reader->StillValid(3, next + 1));
}

TEST_CASE("Generations: an ended block is unreadable, and no write of it can begin or finish", "[unit]") {
  Table table;
  const Generation readable = table.writer.BeginWrite(0);
  REQUIRE(table.writer.FinishWrite(0, readable));
  const Generation under_way = table.writer.BeginWrite(1);
  table.writer.EndAll();
  for (std::uint32_t block = 0; block < kBlocks; ++block) {
    const Generation ended = table.writer.Current(block);
    CHECK(IsEnded(ended));
    CHECK_FALSE(IsReadable(ended));
    CHECK(table.writer.BeginWrite(block) == 0);
    CHECK_FALSE(table.writer.FinishWrite(block, 0));
    CHECK_FALSE(table.writer.FinishWrite(block, ended));
  }
  CHECK(table.writer.all_ended());
  CHECK_FALSE(table.writer.StillValid(0, readable + 1));
  CHECK_FALSE(table.writer.FinishWrite(1, under_way));
  const Generation before = table.writer.Current(0);
  table.writer.EndAll();
  CHECK(table.writer.Current(0) == before);
}

TEST_CASE("Generations: the next owner of an ended table writes values above all that it had", "[unit]") {
  Table table;
  const Generation first = table.writer.BeginWrite(0);
  REQUIRE(table.writer.FinishWrite(0, first));
  const Generation under_way = table.writer.BeginWrite(1);
  table.writer.End(0);
  table.writer.End(1);
  CHECK(table.writer.BeginWrite(2) == 1);  // not ended, and not touched by who takes the table up
  table.writer.TakeUpAll();
  CHECK(table.writer.Current(2) == 1);
  CHECK_FALSE(table.writer.FinishWrite(1, under_way));
  for (const std::uint32_t block : {0u, 1u}) {
    CHECK_FALSE(IsReadable(table.writer.Current(block)));
    const Generation write = table.writer.BeginWrite(block);
    CHECK(write > (block == 0 ? first + 1 : under_way));
    CHECK(table.writer.FinishWrite(block, write));
  }
}

TEST_CASE("Generations: a counter without a further value ends the block for ever", "[unit]") {
  Table table;
  // As a former owner may have left it.
  for (const Generation left : {kGenerationEnded - 4, kGenerationEnded - 3, kGenerationEnded - 2, kGenerationEnded - 1}) {
    INFO(left);
    table.words[sizeof(GenerationHeader) / 8] = left;
    Generation last = left;
    for (int writes = 0; writes < 4; ++writes) {
      const Generation write = table.writer.BeginWrite(0);
      if (write == 0) break;
      CHECK(write > last);
      CHECK(table.writer.FinishWrite(0, write));
      last = write + 1;
    }
    CHECK(IsEnded(table.writer.Current(0)));
    CHECK(table.writer.BeginWrite(0) == 0);
    table.writer.TakeUp(0);
    CHECK(table.writer.BeginWrite(0) == 0);
    CHECK_FALSE(IsReadable(table.writer.Current(0)));
  }
  for (const Generation left : {~Generation{0}, ~Generation{1}, kGenerationEnded}) {
    table.words[sizeof(GenerationHeader) / 8] = left;
    CHECK(table.writer.BeginWrite(0) == 0);
  }
}

TEST_CASE("Generations: a write that races with the end of a table leaves no readable block", "[unit]") {
  for (int round = 0; round < 200; ++round) {
    Table table;
    std::atomic<bool> stop{false};
    std::atomic<int> running{0};
    std::vector<std::thread> writers;
    for (int i = 0; i < 2; ++i) {
      writers.emplace_back([&] {
        ++running;
        while (!stop) {
          for (std::uint32_t block = 0; block < kBlocks; ++block) {
            static_cast<void>(table.writer.FinishWrite(block, table.writer.BeginWrite(block)));
          }
        }
      });
    }
    while (running < 2) std::this_thread::yield();
    GenerationWriter owner = table.writer;
    owner.EndAll();
    std::size_t readable = 0;
    for (int look = 0; look < 100; ++look) {
      for (std::uint32_t block = 0; block < kBlocks; ++block) readable += IsReadable(owner.Current(block));
    }
    stop = true;
    for (std::thread& writer : writers) writer.join();
    CHECK(readable == 0);
  }
}

TEST_CASE("Generations: a block out of range is never readable", "[unit]") {
  Table table;
  for (const std::uint32_t block : {kBlocks, kBlocks + 1, ~0u}) {
    CHECK(table.writer.Current(block) == 0);
    CHECK_FALSE(table.writer.StillValid(block, 0));
    CHECK_FALSE(table.writer.StillValid(block, 2));
  }
  CHECK(GenerationReader().Current(0) == 0);
}

TEST_CASE("Generations: the header is checked field by field", "[unit]") {
  Table table;
  KVM_REQUIRE_OK(GenerationReader::Open(table.bytes(), kBlocks));
  KVM_CHECK_ERROR(GenerationReader::Open(table.bytes(), kBlocks - 1), Errc::kProtocol, "blocks");
  KVM_CHECK_ERROR(GenerationReader::Open(table.bytes(), kBlocks + 1), Errc::kProtocol, "blocks");
  const GenerationHeader good = table.header();
  table.header().magic ^= 1;
  KVM_CHECK_ERROR(GenerationReader::Open(table.bytes(), kBlocks), Errc::kProtocol, "magic");
  table.header() = good;
  ++table.header().layout_version;
  KVM_CHECK_ERROR(GenerationReader::Open(table.bytes(), kBlocks), Errc::kVersionMismatch, "version");
  table.header() = good;
  table.header().block_count = ~0u;
  KVM_CHECK_ERROR(GenerationReader::Open(table.bytes(), ~0u), Errc::kProtocol, "bytes");
}

TEST_CASE("Generations: memory that is too short for the blocks in its header is refused", "[unit]") {
  Table table;
  for (std::size_t size = 0; size < table.bytes().size(); ++size) {
    CHECK_FALSE(GenerationReader::Open(table.bytes().first(size), kBlocks));
  }
}

TEST_CASE("Generations: of writers that race for a block, only the last to begin can finish", "[unit]") {
  Table table(1);
  constexpr int kThreads = 4, kRounds = 20000;
  std::atomic<int> finished{0};
  std::vector<std::vector<Generation>> began(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        const Generation write = table.writer.BeginWrite(0);
        began[static_cast<std::size_t>(t)].push_back(write);
        if (table.writer.FinishWrite(0, write)) finished.fetch_add(1, std::memory_order_relaxed);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  // Every write has a value of its own, and the table ends even: the last one to begin did finish.
  std::vector<Generation> all;
  for (const std::vector<Generation>& each : began) all.insert(all.end(), each.begin(), each.end());
  std::sort(all.begin(), all.end());
  CHECK(std::adjacent_find(all.begin(), all.end()) == all.end());
  CHECK(table.writer.Current(0) == all.back() + 1);
  CHECK(finished.load() >= 1);
  CHECK(finished.load() <= kThreads * kRounds);
}

TEST_CASE("Generations: a reader that validates never accepts bytes of two writes", "[unit]") {
  Table table(1);
  const Result<GenerationReader> reader = GenerationReader::Open(table.bytes(), 1);
  KVM_REQUIRE_OK(reader);
  constexpr std::size_t kWords = 64;
  // Relaxed atomics stand for the payload: a plain memory race would be one by definition.
  std::vector<std::atomic<std::uint64_t>> payload(kWords);
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> looks{0};
  std::thread writer([&] {
    for (std::uint64_t round = 1; !stop.load(std::memory_order_relaxed); ++round) {
      const Generation write = table.writer.BeginWrite(0);
      for (std::atomic<std::uint64_t>& word : payload) word.store(write + 1, std::memory_order_relaxed);
      static_cast<void>(table.writer.FinishWrite(0, write));
      // Now and then the block stays readable while the reader looks at it, so that some looks are
      // accepted, however the machine runs the two threads. One begins and ends in this time.
      if (round % 64 != 0) continue;
      const std::uint64_t before = looks.load(std::memory_order_relaxed);
      while (looks.load(std::memory_order_relaxed) < before + 2 && !stop.load(std::memory_order_relaxed)) std::this_thread::yield();
    }
  });
  int accepted = 0, mixed = 0;
  for (int round = 0; round < 200000 || accepted < 100; ++round) {
    looks.fetch_add(1, std::memory_order_relaxed);
    const Generation generation = reader->Current(0);
    if (!IsReadable(generation)) continue;
    std::uint64_t copy[kWords];
    for (std::size_t i = 0; i < kWords; ++i) copy[i] = payload[i].load(std::memory_order_relaxed);
    if (!reader->StillValid(0, generation)) continue;
    ++accepted;
    for (const std::uint64_t word : copy) mixed += word != generation;
  }
  stop = true;
  writer.join();
  CHECK(accepted >= 100);
  CHECK(mixed == 0);
}
