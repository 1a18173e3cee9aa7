// The host backend: right bytes whatever the layouts, and no status kValid for a block that was
// rewritten before or during its copy (I2, I4, I8).
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "cuda/host/checksum.h"
#include "cuda/memory_backend.h"
#include "kvm/memory_checksum.h"
#include "tests/catch.h"
#include "tests/support/data/geometries.h"
#include "tests/support/data/host_region.h"
#include "tests/support/data/random.h"
#include "tests/support/data/standing_generations.h"
#include "tests/support/process/lost_memory.h"
#include "tests/support/process/watched_memory.h"

namespace {

using namespace kvm;
using test::HostRegion;

// Runs one import of `blocks` from `source`, checked against `generations`, into memory of `to`'s
// geometry.
std::vector<BlockStatus> Import(const HostRegion& source, const PeerGenerations& generations, const LocalMemory& destination,
                                const Geometry& to, std::vector<ImportBlock> blocks, SteadyTime deadline = SteadyTime::max()) {
  const Result<CopyPlan> plan = MakeCopyPlan(source.geometry, to);
  KVM_REQUIRE_OK(plan);
  ImportRequest request;
  request.destination = &destination;
  request.runs = {{source.peer.get(), &generations, &*plan, 0, blocks.size()}};
  request.blocks = std::move(blocks);
  request.deadline = deadline;
  const std::unique_ptr<ImportJob> job = MakeHostBackend()->Import(std::move(request));
  REQUIRE(job->Wait(SteadyTime::max()));
  REQUIRE(job->Done());
  return {job->statuses().begin(), job->statuses().end()};
}

std::vector<BlockStatus> Import(const HostRegion& source, const HostRegion& destination, std::vector<ImportBlock> blocks,
                                SteadyTime deadline = SteadyTime::max()) {
  return Import(source, source.generations, *destination.memory, destination.geometry, std::move(blocks), deadline);
}

constexpr std::uint32_t kBlocks = 8;

// Rewrites block 0 until told to stop, with pauses about as long as a copy, so that copies meet
// every step of a write and some meet none.
void Rewrite(HostRegion& source, const std::atomic<bool>& stop) {
  test::Random random(1);
  while (!stop.load(std::memory_order_relaxed)) {
    source.PublishGeneration(0);
    const SteadyTime resume = std::chrono::steady_clock::now() + std::chrono::microseconds(random.Below(40));
    while (std::chrono::steady_clock::now() < resume) continue;
  }
}

TEST_CASE("Checksum: each piece of memory has the sum of a block with the same bytes, and the last piece may be shorter", "[unit]") {
  std::vector<std::byte> bytes(2 * 64 + 13);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 + 1);
  const auto sums = ChecksumMemory(bytes.data(), bytes.size(), 64, kHostMemory);
  KVM_REQUIRE_OK(sums);
  const std::byte* base = bytes.data();
  const std::byte* rest = base + 128;
  CHECK(*sums == std::vector<std::uint64_t>{ChecksumBlock(Geometry::Contiguous(2, 64), {&base, 1}, 0),
                                            ChecksumBlock(Geometry::Contiguous(2, 64), {&base, 1}, 1),
                                            ChecksumBlock(Geometry::Contiguous(1, 13), {&rest, 1}, 0)});
  bytes.back() ^= std::byte{1};
  const auto changed = ChecksumMemory(bytes.data(), bytes.size(), 64, kHostMemory);
  KVM_REQUIRE_OK(changed);
  CHECK(changed->at(0) == sums->at(0));
  CHECK(changed->at(2) != sums->at(2));
  CHECK(ChecksumMemory(bytes.data(), 0, 64, kHostMemory)->empty());
  KVM_CHECK_ERROR(ChecksumMemory(bytes.data(), 1, 0, kHostMemory), Errc::kInvalidArgument, "pieces of 0 bytes");
}

}  // namespace

TEST_CASE("Host backend: an import between any two engine layouts brings the right bytes", "[unit]") {
  for (const test::NamedGeometry& from : test::EngineLayouts(kBlocks)) {
    for (const test::NamedGeometry& to : test::EngineLayouts(kBlocks + 3)) {
      INFO(from.name << " to " << to.name);
      HostRegion source(from), destination(to);
      for (std::uint32_t block = 0; block < kBlocks; ++block) source.Publish(block, 1000 + block);
      const std::vector<BlockStatus> statuses = Import(source, destination, {{7, 0, 2}, {0, 10, 2}, {3, 4, 2}});
      CHECK(statuses == std::vector<BlockStatus>(3, BlockStatus::kValid));
      CHECK(destination.Holds(0, 1007));
      CHECK(destination.Holds(10, 1000));
      CHECK(destination.Holds(4, 1003));
      CHECK(destination.Holds(1, HostRegion::kNothing));
    }
  }
}

TEST_CASE("Host backend: a peer's memory mapped by descriptor holds the same bytes", "[unit]") {
  HostRegion source(test::EngineLayouts(kBlocks)[1]), destination(test::EngineLayouts(kBlocks)[0]);
  source.MapByDescriptor();
  source.Publish(2, 77);
  CHECK(Import(source, destination, {{2, 5, 2}}) == std::vector<BlockStatus>{BlockStatus::kValid});
  CHECK(destination.Holds(5, 77));
}

TEST_CASE("Host backend: several runs from several sources fill one request", "[unit]") {
  const test::NamedGeometry layout = test::EngineLayouts(kBlocks)[0];
  HostRegion a(layout), b(layout), destination(layout);
  a.Publish(1, 501);
  b.Publish(1, 601);
  a.Publish(2, 502);
  const Result<CopyPlan> plan = MakeCopyPlan(layout.geometry, layout.geometry);
  KVM_REQUIRE_OK(plan);
  ImportRequest request;
  request.destination = destination.memory.get();
  request.runs = {{a.peer.get(), &a.generations, &*plan, 0, 1},
                  {b.peer.get(), &b.generations, &*plan, 1, 1},
                  {a.peer.get(), &a.generations, &*plan, 2, 1}};
  request.blocks = {{1, 0, 2}, {1, 1, 2}, {2, 2, 2}};
  const std::unique_ptr<ImportJob> job = MakeHostBackend()->Import(std::move(request));
  REQUIRE(job->Wait(SteadyTime::max()));
  for (const BlockStatus status : job->statuses()) CHECK(status == BlockStatus::kValid);
  CHECK(destination.Holds(0, 501));
  CHECK(destination.Holds(1, 601));
  CHECK(destination.Holds(2, 502));
}

TEST_CASE("Host backend: a block whose generation moved on before is stale and all behind it fail", "[unit]") {
  const test::NamedGeometry layout = test::EngineLayouts(kBlocks)[0];
  HostRegion source(layout), destination(layout);
  for (std::uint32_t block = 0; block < 4; ++block) source.Publish(block, 1 + block);
  source.Publish(1, 100);  // generation 4 now
  const std::vector<BlockStatus> statuses = Import(source, destination, {{0, 0, 2}, {1, 1, 2}, {2, 2, 2}, {3, 3, 2}});
  CHECK(statuses ==
        std::vector<BlockStatus>{BlockStatus::kValid, BlockStatus::kStale, BlockStatus::kBehindFailed, BlockStatus::kBehindFailed});
  CHECK(destination.Holds(0, 1));
}

TEST_CASE("Host backend: blocks being written, never written and out of range are stale", "[unit]") {
  const test::NamedGeometry layout = test::EngineLayouts(kBlocks)[0];
  HostRegion source(layout), destination(layout);
  const Generation write = source.writer.BeginWrite(0);
  for (const ImportBlock block : {ImportBlock{0, 0, write}, ImportBlock{0, 0, write + 1}, ImportBlock{1, 0, 0}, ImportBlock{1, 0, 2},
                                  ImportBlock{kBlocks, 0, 0}, ImportBlock{~0u, 0, 2}}) {
    CHECK(Import(source, destination, {block}) == std::vector<BlockStatus>{BlockStatus::kStale});
  }
  CHECK(destination.Holds(0, HostRegion::kNothing));
}

TEST_CASE("Host backend: blocks not copied by the deadline say so", "[unit]") {
  const test::NamedGeometry layout = test::EngineLayouts(kBlocks)[0];
  HostRegion source(layout), destination(layout);
  source.Publish(0, 1);
  source.Publish(1, 2);
  const SteadyTime past = std::chrono::steady_clock::now() - std::chrono::seconds(1);
  CHECK(Import(source, destination, {{0, 0, 2}, {1, 1, 2}}, past) ==
        std::vector<BlockStatus>{BlockStatus::kDeadline, BlockStatus::kBehindFailed});
  CHECK(destination.Holds(0, HostRegion::kNothing));
  const SteadyTime later = std::chrono::steady_clock::now() + std::chrono::hours(1);
  CHECK(Import(source, destination, {{0, 0, 2}, {1, 1, 2}}, later) == std::vector<BlockStatus>{BlockStatus::kValid, BlockStatus::kValid});
}

TEST_CASE("Host backend: an import of no block is done at once", "[unit]") {
  const test::NamedGeometry layout = test::EngineLayouts(kBlocks)[0];
  HostRegion source(layout), destination(layout);
  CHECK(Import(source, destination, {}).empty());
}

TEST_CASE("Host backend: a block rewritten at full speed is never valid with wrong bytes", "[unit]") {
  const test::NamedGeometry layout{"one large block", Geometry::Contiguous(1, 64 * 1024), {64 * 1024}};
  HostRegion source(layout), destination(layout);
  const SteadyTime enough = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  std::atomic<bool> stop{false};
  std::thread writer([&] { Rewrite(source, stop); });
  int valid = 0, stale = 0, wrong = 0;
  while ((valid < 500 || stale < 500) && std::chrono::steady_clock::now() < enough) {
    const Generation generation = source.generations.reader.Current(0);
    if (!IsReadable(generation)) continue;
    if (Import(source, destination, {{0, 0, generation}}).front() == BlockStatus::kValid) {
      ++valid;
      wrong += !destination.Holds(0, generation);
    } else {
      ++stale;
    }
  }
  stop = true;
  writer.join();
  CHECK(valid > 0);
  CHECK(stale > 0);
  CHECK(wrong == 0);
}

TEST_CASE("Host backend: a block rewritten in the middle of its copy is stale, and passes without the second check", "[unit]") {
  constexpr std::uint64_t kHalf = 4096;
  const test::NamedGeometry halves{"two halves", Geometry{1, {{0, 0, kHalf, kHalf, 1, 0}, {1, 0, kHalf, kHalf, 1, 0}}}, {kHalf, kHalf}};
  for (const bool checked : {true, false}) {
    INFO((checked ? "checked" : "not checked"));
    HostRegion source(halves), destination(halves);
    source.PublishGeneration(0);
    const std::vector<ImportBlock> blocks{{0, 0, 2}};
    const test::StandingGenerations standing(1, blocks);
    const test::WatchedMemory watched(*destination.memory, [&](std::size_t piece) {
      if (piece == 1) source.PublishGeneration(0);
    });
    const std::vector<BlockStatus> statuses =
        Import(source, checked ? source.generations : standing.Get(), watched, destination.geometry, blocks);
    CHECK(statuses == std::vector<BlockStatus>{checked ? BlockStatus::kStale : BlockStatus::kValid});
    // Torn: half of the one, half of the other.
    CHECK_FALSE(destination.Holds(0, 2));
    CHECK_FALSE(destination.Holds(0, 4));
  }
}

TEST_CASE("Host backend: memory is zeroed, exportable and what the backend says it is", "[unit]") {
  const std::shared_ptr<MemoryBackend> backend = MakeHostBackend();
  CHECK(backend->kind() == layout::HandleKind::kHostMemfd);
  CHECK(backend->device_uuid() == std::array<std::uint8_t, 16>{});
  const std::uint64_t sizes[] = {4096, 100};
  const auto memory = backend->Allocate("test", sizes);
  KVM_REQUIRE_OK(memory);
  REQUIRE((*memory)->handles().size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK((*memory)->handles()[i].size_bytes == sizes[i]);
    CHECK((*memory)->handles()[i].handle.empty());
    KVM_REQUIRE_OK(CheckSealed((*memory)->handles()[i].fd.get(), sizes[i]));
    CHECK((*memory)->SegmentData(i)[sizes[i] - 1] == std::byte{0});
  }
}

TEST_CASE("Host backend: memory that can't be allocated is an error", "[unit]") {
  const std::uint64_t sizes[] = {4096, std::uint64_t{1} << 60};
  KVM_CHECK_ERROR(MakeHostBackend()->Allocate("test", sizes), Errc::kResourceExhausted, "are needed");
}

TEST_CASE("Host backend: a peer's segment smaller than announced, or unsealed, is refused", "[unit]") {
  const std::uint64_t sizes[] = {4096};
  const auto memory = MakeHostBackend()->Allocate("test", sizes);
  KVM_REQUIRE_OK(memory);
  std::vector<SegmentHandle> larger(1);
  larger[0].size_bytes = 4097;
  larger[0].fd.Reset(::dup((*memory)->handles()[0].fd.get()));
  KVM_CHECK_ERROR(MakeHostBackend()->Map(std::move(larger)), Errc::kInvalidArgument, "4097");
  std::vector<SegmentHandle> none(1);
  none[0].size_bytes = 4096;
  KVM_CHECK_ERROR(MakeHostBackend()->Map(std::move(none)), Errc::kPermissionDenied, "memfd");
}

TEST_CASE("Host backend: no block of a source whose memory is gone is valid, and the importer survives", "[unit]") {
  const test::NamedGeometry layout = test::EngineLayouts(kBlocks)[1];
  HostRegion source(layout), other(layout), destination(layout);
  for (HostRegion* region : {&source, &other}) {
    region->MapByDescriptor();
    for (std::uint32_t block = 0; block < 2; ++block) region->Publish(block, 60 + block);
  }
  CHECK_FALSE(source.peer->lost());
  REQUIRE(test::LoseMappings("kvm:test") > 0);
  // The owner sees its own memory as before; only the mappings of who reads it are gone.
  source.generations = std::move(*MapGenerations(source.generation_memory.fd(), kBlocks));
  CHECK(Import(source, destination, {{0, 0, 2}, {1, 1, 2}}) == std::vector<BlockStatus>{BlockStatus::kError, BlockStatus::kBehindFailed});
  CHECK(source.peer->lost());
  source.MapByDescriptor();
  CHECK(Import(source, destination, {{0, 0, 2}, {1, 1, 2}}) == std::vector<BlockStatus>(2, BlockStatus::kValid));
  CHECK(destination.Holds(1, 61));
}

TEST_CASE("Host backend: blocks of a generation table that is gone are stale", "[unit]") {
  const test::NamedGeometry layout = test::EngineLayouts(kBlocks)[0];
  HostRegion source(layout), destination(layout);
  source.Publish(3, 5);
  REQUIRE(test::LoseMappings("kvm:test:generations") > 0);
  CHECK(Import(source, destination, {{3, 3, 2}}) == std::vector<BlockStatus>{BlockStatus::kStale});
  CHECK(source.generations.memory.lost());
  CHECK(source.generations.reader.Current(3) == 0);
}
