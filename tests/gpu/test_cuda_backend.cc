// The CUDA backend within one process: layouts, validation in stream order, errors, streams,
// checksums.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <set>
#include <thread>

#include "cuda/host/checksum.h"
#include "cuda/topology/topology.h"
#include "kvm/memory_checksum.h"
#include "tests/gpu/blocked_stream.h"
#include "tests/gpu/exporter.h"
#include "tests/gpu/local_region.h"
#include "tests/support/data/geometries.h"
#include "tests/support/data/random.h"

namespace {

using namespace kvm;
using namespace kvm::test;
using Clock = std::chrono::steady_clock;

struct Pair {
  explicit Pair(std::uint32_t blocks, std::uint64_t bytes = 1 << 16)
      : backend(BackendOf(0)),
        source(backend, Geometry::Contiguous(blocks, bytes), {blocks * bytes}),
        destination(backend, Geometry::Contiguous(blocks, bytes), {blocks * bytes}),
        plan(*MakeCopyPlan(source.geometry, destination.geometry)) {
    source.Fill();
    KVM_REQUIRE_OK(backend->AttachGenerations(source.generations));
  }
  ImportRequest Request(std::vector<ImportBlock> blocks) const {
    return RequestOf(*destination.memory, *source.view, source.generations, plan, std::move(blocks));
  }
  std::shared_ptr<MemoryBackend> backend;
  LocalRegion source, destination;
  CopyPlan plan;
};

std::vector<ImportBlock> Reversed(std::uint32_t count, Generation generation = 2) {
  std::vector<ImportBlock> blocks;
  for (std::uint32_t i = 0; i < count; ++i) blocks.push_back({count - 1 - i, i, generation});
  return blocks;
}

TEST_CASE("CUDA backend: every layout imports into every other", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 32;
  const auto backend = BackendOf(0);
  for (const NamedGeometry& from : EngineLayouts(kBlocks)) {
    LocalRegion source(backend, from.geometry, from.segment_bytes);
    source.Fill();
    KVM_REQUIRE_OK(backend->AttachGenerations(source.generations));
    for (const NamedGeometry& to : EngineLayouts(kBlocks)) {
      INFO(from.name << " to " << to.name);
      LocalRegion destination(backend, to.geometry, to.segment_bytes);
      const Result<CopyPlan> plan = MakeCopyPlan(from.geometry, to.geometry);
      KVM_REQUIRE_OK(plan);
      const std::vector<ImportBlock> blocks = Reversed(kBlocks);
      const auto job = backend->Import(RequestOf(*destination.memory, *source.view, source.generations, *plan, blocks));
      CHECK(AllValid(StatusesOf(*job)));
      Pattern pattern(to.geometry, BasesOf(*destination.memory));
      std::vector<PatternBlock> expected;
      for (const ImportBlock& block : blocks) expected.push_back({block.destination_block, block.source_block, block.generation});
      for (const bool wrong : pattern.Wrong(expected)) REQUIRE_FALSE(wrong);
    }
  }
}

TEST_CASE("CUDA backend: large imports validate every block and long runs use the copy engine", "[gpu]") {
  KVM_NEED_GPUS(1);
  // Scattered (the bulk kernel or plain loads, table in device memory) and adjacent (copy engine).
  for (const bool adjacent : {false, true}) {
    Pair pair(6000, 1 << 14);
    std::vector<ImportBlock> blocks = Reversed(6000);
    if (adjacent) {
      for (std::uint32_t i = 0; i < 6000; ++i) blocks[i].source_block = i;
    }
    const auto job = pair.backend->Import(pair.Request(blocks));
    CHECK(AllValid(StatusesOf(*job)));
    Pattern pattern(pair.destination.geometry, BasesOf(*pair.destination.memory));
    std::vector<PatternBlock> expected;
    for (const ImportBlock& block : blocks) expected.push_back({block.destination_block, block.source_block, 2});
    for (const bool wrong : pattern.Wrong(expected)) REQUIRE_FALSE(wrong);
  }
}

TEST_CASE("CUDA backend: an import of many blocks from two sources reports the status of each block", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 5000;
  Pair pair(kBlocks, 4096);
  LocalRegion other(pair.backend, Geometry::Contiguous(kBlocks, 4096), {kBlocks * std::uint64_t{4096}});
  other.Fill();
  KVM_REQUIRE_OK(pair.backend->AttachGenerations(other.generations));
  // Where the first bad block is, and whether it is found before or after the copy.
  for (const std::uint32_t bad : {500u, 1024u, 3000u, kBlocks}) {
    for (const bool before : {true, false}) {
      INFO("bad block " << bad << (before ? " before" : " after") << " submission");
      BlockedStream stream;
      ImportRequest request;
      request.destination = pair.destination.memory.get();
      for (std::uint32_t first = 0; first < kBlocks; first += 100) {
        const LocalRegion& from = first / 100 % 3 == 1 ? other : pair.source;
        request.runs.push_back({from.view.get(), &from.generations, &pair.plan, first, 100});
        for (std::uint32_t i = first; i < first + 100; ++i) {
          const std::uint32_t block = (i * 7) % kBlocks;
          request.blocks.push_back({block, i, from.writer.Current(block)});
        }
      }
      const std::vector<ImportBlock> blocks = request.blocks;
      request.stream = stream.handle();
      const auto spoil = [&] {
        if (bad == kBlocks) return;
        LocalRegion& from = bad / 100 % 3 == 1 ? other : pair.source;
        const std::uint32_t block = blocks[bad].source_block;
        REQUIRE(from.writer.FinishWrite(block, from.writer.BeginWrite(block)));
      };
      if (before) spoil();
      const auto job = pair.backend->Import(std::move(request));
      if (!before) spoil();
      stream.Release();
      const std::vector<BlockStatus> statuses = StatusesOf(*job);
      for (std::uint32_t i = 0; i < kBlocks; ++i) {
        REQUIRE(statuses[i] == (i < bad ? BlockStatus::kValid : i == bad ? BlockStatus::kStale : BlockStatus::kBehindFailed));
      }
      // The bytes are those of generation 2: spoiling rewrote nothing.
      Pattern pattern(pair.destination.geometry, BasesOf(*pair.destination.memory));
      std::vector<PatternBlock> expected;
      for (std::uint32_t i = 0; i < bad; ++i) expected.push_back({i, blocks[i].source_block, 2});
      for (const bool wrong : pattern.Wrong(expected)) REQUIRE_FALSE(wrong);
    }
  }
}

TEST_CASE("CUDA backend: a long list is made by part, and no block is copied before it is made", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 5000;
  Pair pair(kBlocks, 4096);
  for (const std::uint32_t bad : {0u, 100u, 700u, 4999u, kBlocks}) {
    INFO("bad block " << bad);
    const std::vector<ImportBlock> all = Reversed(kBlocks);
    ImportRequest request = pair.Request({});
    request.runs[0].count = kBlocks;
    request.wants_event = true;
    std::vector<std::size_t> ends;
    request.prepare = [&](std::vector<ImportBlock>& blocks, std::size_t end) {
      ends.push_back(end);
      while (blocks.size() < end) {
        blocks.push_back(all[blocks.size()]);
        if (blocks.size() == bad + 1) blocks.back().generation = 4;
      }
    };
    const auto job = pair.backend->Import(std::move(request));
    const std::vector<BlockStatus> statuses = StatusesOf(*job);
    REQUIRE(statuses.size() == kBlocks);
    for (std::uint32_t i = 0; i < kBlocks; ++i) {
      REQUIRE(statuses[i] == (i < bad ? BlockStatus::kValid : i == bad ? BlockStatus::kStale : BlockStatus::kBehindFailed));
    }
    REQUIRE_FALSE(ends.empty());
    CHECK(std::is_sorted(ends.begin(), ends.end()));
    CHECK((bad <= 100 ? ends.size() == 1 : ends.size() > 1));
    CHECK((bad < kBlocks || ends.back() == kBlocks));
    if (bad > 0) CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(job->event())) == cudaSuccess);
    Pattern pattern(pair.destination.geometry, BasesOf(*pair.destination.memory));
    std::vector<PatternBlock> expected;
    for (std::uint32_t i = 0; i < bad; ++i) expected.push_back({i, all[i].source_block, 2});
    for (const bool wrong : pattern.Wrong(expected)) REQUIRE_FALSE(wrong);
  }
}

TEST_CASE("CUDA backend: a block that was stale before the copy fails, and all behind it", "[gpu]") {
  KVM_NEED_GPUS(1);
  Pair pair(16);
  static_cast<void>(pair.source.writer.BeginWrite(11));  // index 4 of the reversed list
  const auto job = pair.backend->Import(pair.Request(Reversed(16)));
  const std::vector<BlockStatus> statuses = StatusesOf(*job);
  for (std::size_t i = 0; i < 16; ++i) {
    CHECK(statuses[i] == (i < 4 ? BlockStatus::kValid : i == 4 ? BlockStatus::kStale : BlockStatus::kBehindFailed));
  }
  // A generation that no publish can have had.
  for (const Generation never : {Generation{0}, Generation{3}}) {
    const auto refused = pair.backend->Import(pair.Request({{0, 0, never}}));
    CHECK(StatusesOf(*refused)[0] == BlockStatus::kStale);
  }
}

TEST_CASE("CUDA backend: a block rewritten after submission is caught by the GPU", "[gpu]") {
  KVM_NEED_GPUS(1);
  for (const bool on_gpu : {true, false}) {
    Pair pair(16);
    if (!on_gpu) pair.source.generations.attachment.reset();  // validated by the CPU then
    BlockedStream stream;
    ImportRequest request = pair.Request(Reversed(16));
    request.stream = stream.handle();
    const auto job = pair.backend->Import(std::move(request));
    CHECK_FALSE(job->Done());
    static_cast<void>(pair.source.writer.BeginWrite(15 - 9));
    stream.Release();
    const std::vector<BlockStatus> statuses = StatusesOf(*job);
    for (std::size_t i = 0; i < 16; ++i) {
      CHECK(statuses[i] == (i < 9 ? BlockStatus::kValid : i == 9 ? BlockStatus::kStale : BlockStatus::kBehindFailed));
    }
  }
}

TEST_CASE("CUDA backend: an import larger than any before does not wait for the GPU", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 100000;
  Pair pair(kBlocks, 256);
  BlockedStream stream;
  ImportRequest request = pair.Request(Reversed(kBlocks));
  request.stream = stream.handle();
  const auto begin = Clock::now();
  const auto job = pair.backend->Import(std::move(request));
  const bool done_early = job->Done();
  const auto took = Clock::now() - begin;
  stream.Release();
  CHECK_FALSE(done_early);
  CHECK(took < std::chrono::seconds(2));
  CHECK(AllValid(StatusesOf(*job)));
}

TEST_CASE("CUDA backend: waiting ends with the deadline, not with the copy", "[gpu]") {
  KVM_NEED_GPUS(1);
  Pair pair(4);
  BlockedStream stream;
  ImportRequest request = pair.Request(Reversed(4));
  request.stream = stream.handle();
  request.wants_event = true;
  const auto begin = Clock::now();
  const auto job = pair.backend->Import(std::move(request));
  CHECK_FALSE(job->Wait(Clock::now() + std::chrono::milliseconds(20)));
  CHECK(Clock::now() - begin < std::chrono::seconds(2));
  const auto event = static_cast<cudaEvent_t>(job->event());
  REQUIRE(event != nullptr);
  CHECK(cudaEventQuery(event) == cudaErrorNotReady);
  stream.Release();
  CHECK(AllValid(StatusesOf(*job)));
  CHECK(cudaEventSynchronize(event) == cudaSuccess);

  ImportRequest late = pair.Request(Reversed(4));
  late.deadline = Clock::now() - std::chrono::milliseconds(1);
  const auto expired = pair.backend->Import(std::move(late));
  CHECK(expired->Done());
  CHECK(expired->statuses()[0] == BlockStatus::kDeadline);
}

TEST_CASE("CUDA backend: a job on a stalled stream can be destroyed, and its memory stays mapped until the copy has ended", "[gpu]") {
  KVM_NEED_GPUS(1);
  Pair pair(4);
  const std::vector<std::byte> before = Download(*pair.backend, *pair.destination.memory, 0);
  BlockedStream stream;
  auto kept = std::make_shared<int>();
  const std::weak_ptr<int> watched = kept;
  ImportRequest request = pair.Request(Reversed(4));
  request.stream = stream.handle();
  request.patience = std::chrono::milliseconds(20);
  request.keep = std::move(kept);
  // Would wait for the stream's release, five seconds from now
  pair.backend->Import(std::move(request)).reset();
  CHECK_FALSE(watched.expired());
  CHECK(Download(*pair.backend, *pair.destination.memory, 0) == before);
  stream.Release();
  const auto end = Clock::now() + std::chrono::seconds(20);
  while (!watched.expired() && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK(watched.expired());
  // It has taken place.
  const std::vector<std::byte> source = Download(*pair.backend, *pair.source.memory, 0);
  const std::vector<std::byte> copied = Download(*pair.backend, *pair.destination.memory, 0);
  const std::size_t block = source.size() / 4;
  for (std::size_t i = 0; i < 4; ++i) CHECK(std::memcmp(&copied[i * block], &source[(3 - i) * block], block) == 0);
}

TEST_CASE("CUDA backend: its destructor does not wait for streams with pending actions, and the actions still run", "[gpu]") {
  KVM_NEED_GPUS(1);
  std::shared_ptr<MemoryBackend> backend = BackendOf(0);
  BlockedStream stream;
  const auto ran = std::make_shared<std::atomic<bool>>(false);
  KVM_REQUIRE_OK(backend->RunAfter(stream.handle(), [ran] { *ran = true; }));
  backend.reset();
  CHECK_FALSE(*ran);
  stream.Release();
  const auto end = Clock::now() + std::chrono::seconds(20);
  while (!*ran && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK(*ran);
}

TEST_CASE("CUDA backend: requests that make no sense are refused block by block", "[gpu]") {
  KVM_NEED_GPUS(1);
  Pair pair(4);
  SECTION("memory of another backend") {
    const auto host = MakeHostBackend();
    const std::uint64_t bytes = 4 << 16;
    const auto memory = host->Allocate("host", {&bytes, 1});
    KVM_REQUIRE_OK(memory);
    const auto job = pair.backend->Import(RequestOf(**memory, *pair.source.view, pair.source.generations, pair.plan, Reversed(4)));
    CHECK(StatusesOf(*job)[0] == BlockStatus::kError);
  }
  SECTION("a stream that is being captured") {
    cudaStream_t stream = nullptr;
    MustSucceed(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    MustSucceed(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    ImportRequest request = pair.Request(Reversed(4));
    request.stream = StreamHandle{reinterpret_cast<std::uintptr_t>(stream)};
    const auto job = pair.backend->Import(std::move(request));
    CHECK(StatusesOf(*job)[0] == BlockStatus::kError);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
  SECTION("nothing at all") {
    const auto job = pair.backend->Import(pair.Request({}));
    CHECK(job->Done());
    CHECK(job->statuses().empty());
  }
  const auto good = pair.backend->Import(pair.Request(Reversed(4)));
  CHECK(AllValid(StatusesOf(*good)));
}

TEST_CASE("CUDA backend: several threads import at once", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kThreads = 8, kBlocks = 64;
  Pair pair(kThreads * kBlocks);
  std::atomic<int> bad{0};
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 50; ++round) {
        std::vector<ImportBlock> blocks;
        for (std::uint32_t i = 0; i < kBlocks; ++i) blocks.push_back({(t * kBlocks + i * 5) % (kThreads * kBlocks), t * kBlocks + i, 2});
        const auto job = pair.backend->Import(pair.Request(blocks));
        if (!job->Wait(Clock::now() + std::chrono::seconds(10))) ++bad;
        for (const BlockStatus status : job->statuses()) bad += status != BlockStatus::kValid;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(bad == 0);
}

TEST_CASE("CUDA backend: an action runs after its stream's work and delays neither stream nor caller", "[gpu]") {
  KVM_NEED_GPUS(1);
  const auto backend = BackendOf(0);
  BlockedStream stream;
  std::atomic<bool> ran{false};
  KVM_REQUIRE_OK(backend->RunAfter(stream.handle(), [&] { ran = true; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK_FALSE(ran);
  stream.Release();
  const auto end = Clock::now() + std::chrono::seconds(5);
  while (!ran && Clock::now() < end) std::this_thread::yield();
  CHECK(ran);
}

TEST_CASE("CUDA backend: checksums are those of the CPU, in every layout", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 12;
  const auto backend = BackendOf(0);
  Random random(21);
  for (const NamedGeometry& layout : EngineLayouts(kBlocks)) {
    INFO(layout.name);
    LocalRegion region(backend, layout.geometry, layout.segment_bytes);
    std::vector<std::vector<std::byte>> host;
    std::vector<const std::byte*> bases;
    for (std::size_t i = 0; i < layout.segment_bytes.size(); ++i) {
      host.emplace_back(layout.segment_bytes[i]);
      for (std::byte& byte : host.back()) byte = static_cast<std::byte>(random.Next());
      KVM_REQUIRE_OK(backend->WriteBytes(*region.memory, i, 0, host.back()));
      CHECK(Download(*backend, *region.memory, i) == host.back());
    }
    for (const auto& segment : host) bases.push_back(segment.data());
    const std::vector<std::uint32_t> blocks{7, 0, 11, 7};
    const auto sums = backend->Checksum(*region.memory, layout.geometry, blocks);
    KVM_REQUIRE_OK(sums);
    for (std::size_t i = 0; i < blocks.size(); ++i) CHECK(sums->at(i) == ChecksumBlock(layout.geometry, bases, blocks[i]));
  }
  // Chunks that are not whole words.
  const Geometry odd{4, {{0, 1, 13, 30, 2, 15}}};
  LocalRegion region(backend, odd, {256});
  std::vector<std::byte> bytes(256);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.Next());
  KVM_REQUIRE_OK(backend->WriteBytes(*region.memory, 0, 0, bytes));
  const std::byte* base = bytes.data();
  const std::vector<std::uint32_t> blocks{0, 1, 2, 3};
  const auto sums = backend->Checksum(*region.memory, odd, blocks);
  KVM_REQUIRE_OK(sums);
  for (const std::uint32_t block : blocks) CHECK(sums->at(block) == ChecksumBlock(odd, {&base, 1}, block));
  CHECK_FALSE(backend->Checksum(*region.memory, odd, std::vector<std::uint32_t>{4}));
  CHECK_FALSE(backend->WriteBytes(*region.memory, 0, 250, std::vector<std::byte>(7)));
  CHECK_FALSE(backend->ReadBytes(*region.memory, 1, 0, bytes));
}

TEST_CASE("CUDA backend: memory that can't be exported is refused with advice", "[gpu]") {
  KVM_NEED_GPUS(1);
  const auto backend = BackendOf(0);
  void* managed = nullptr;
  MustSucceed(cudaMallocManaged(&managed, 1 << 20), "cudaMallocManaged");
  DeviceRange range{managed, 1 << 20};
  KVM_CHECK_ERROR(backend->Register({&range, 1}), Errc::kUnsupported, "libkvclient");
  cudaFree(managed);
  void* plain = nullptr;
  MustSucceed(cudaMalloc(&plain, 1 << 20), "cudaMalloc");
  range = {static_cast<std::byte*>(plain) + 512, 1 << 30};
  KVM_CHECK_ERROR(backend->Register({&range, 1}), Errc::kInvalidArgument, "leave their allocation");
  int on_host = 0;
  range = {&on_host, 4};
  KVM_CHECK_ERROR(backend->Register({&range, 1}), Errc::kInvalidArgument, "not device memory");
  range = {static_cast<std::byte*>(plain) + 512, 4096};
  const auto registered = backend->Register({&range, 1});
  KVM_REQUIRE_OK(registered);
  CHECK((*registered)->kind() == layout::HandleKind::kCudaIpc);
  CHECK((*registered)->handles()[0].handle.size() == 64);
  CHECK((*registered)->handles()[0].handle_offset % 512 == 0);
  // A handle of this process itself is used in place.
  std::vector<SegmentHandle> own(1);
  own[0].size_bytes = 4096;
  own[0].handle = (*registered)->handles()[0].handle;
  own[0].handle_offset = (*registered)->handles()[0].handle_offset;
  KVM_REQUIRE_OK(backend->Map(std::move(own), {layout::HandleKind::kCudaIpc, backend->device_uuid()}));
  cudaFree(plain);
}

TEST_CASE("CUDA backend: bad handles and unknown devices are errors", "[gpu]") {
  KVM_NEED_GPUS(1);
  const auto backend = BackendOf(0);
  const auto map = [&](SegmentHandle handle, layout::HandleKind kind) {
    std::vector<SegmentHandle> segments;
    segments.push_back(std::move(handle));
    return backend->Map(std::move(segments), {kind, backend->device_uuid()});
  };
  SegmentHandle garbage;
  garbage.size_bytes = 1 << 20;
  garbage.handle = std::string(64, 'x');
  CHECK_FALSE(map(std::move(garbage), layout::HandleKind::kCudaIpc));
  SegmentHandle cut;
  cut.size_bytes = 1 << 20;
  cut.handle = std::string(10, 'x');
  KVM_CHECK_ERROR(map(std::move(cut), layout::HandleKind::kCudaIpc), Errc::kInvalidArgument, "64 bytes");
  const auto sealed = OwnedMemory::Create("test", 1 << 21);
  KVM_REQUIRE_OK(sealed);
  SegmentHandle wrong_fd;
  wrong_fd.size_bytes = wrong_fd.allocation_bytes = 1 << 21;
  wrong_fd.fd.Reset(::dup(sealed->fd()));
  CHECK_FALSE(map(std::move(wrong_fd), layout::HandleKind::kCudaVmmFd));
  const std::uint64_t bytes = 1 << 21;
  const auto memory = backend->Allocate("test", {&bytes, 1});
  KVM_REQUIRE_OK(memory);
  SegmentHandle too_large;
  too_large.size_bytes = too_large.allocation_bytes = std::uint64_t{64} << 30;
  too_large.fd.Reset(::dup((*memory)->handles()[0].fd.get()));
  CHECK_FALSE(map(std::move(too_large), layout::HandleKind::kCudaVmmFd));
  SegmentHandle closed;
  closed.size_bytes = closed.allocation_bytes = bytes;
  CHECK_FALSE(map(std::move(closed), layout::HandleKind::kCudaVmmFd));
  KVM_CHECK_ERROR(backend->Map({}, {layout::HandleKind::kCudaVmmFd, DeviceUuid{9, 9}}), Errc::kUnsupported, "not visible");
  // None of that has hurt the context.
  Pair pair(4);
  CHECK(AllValid(StatusesOf(*pair.backend->Import(pair.Request(Reversed(4))))));
}

TEST_CASE("CUDA backend: host regions import into the GPU", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 8;
  constexpr std::uint64_t kBytes = 1 << 14;
  const auto backend = BackendOf(0);
  const auto host = MakeHostBackend();
  const std::uint64_t size = kBlocks * kBytes;
  const auto memory = host->Allocate("host", {&size, 1});
  KVM_REQUIRE_OK(memory);
  Random random(2);
  for (std::uint64_t i = 0; i < size; ++i) (*memory)->SegmentData(0)[i] = static_cast<std::byte>(random.Next());
  std::vector<SegmentHandle> segments(1);
  segments[0].size_bytes = size;
  segments[0].fd.Reset(::dup((*memory)->handles()[0].fd.get()));
  const auto mapped = backend->Map(std::move(segments), {layout::HandleKind::kHostMemfd, {}});
  KVM_REQUIRE_OK(mapped);
  CHECK((*mapped)->path() == MemoryPath::kHost);
  CHECK((*mapped)->read_only());
  LocalRegion destination(backend, Geometry::Contiguous(kBlocks, kBytes), {size});
  for (std::uint32_t b = 0; b < kBlocks; ++b) {
    const Generation write = destination.writer.BeginWrite(b);
    REQUIRE(destination.writer.FinishWrite(b, write));
  }
  KVM_REQUIRE_OK(backend->AttachGenerations(destination.generations));
  const CopyPlan plan = *MakeCopyPlan(destination.geometry, destination.geometry);
  const auto job = backend->Import(RequestOf(*destination.memory, **mapped, destination.generations, plan, Reversed(kBlocks)));
  CHECK(AllValid(StatusesOf(*job)));
  const std::vector<std::byte> got = Download(*backend, *destination.memory, 0);
  for (std::uint32_t b = 0; b < kBlocks; ++b) {
    CHECK(std::memcmp(got.data() + b * kBytes, (*memory)->SegmentData(0) + (kBlocks - 1 - b) * kBytes, kBytes) == 0);
  }
}

TEST_CASE("Topology: every GPU reaches itself, and pairs say how", "[gpu]") {
  KVM_NEED_GPUS(1);
  const auto topology = ReadTopology();
  KVM_REQUIRE_OK(topology);
  std::set<DeviceUuid> uuids;
  for (std::size_t i = 0; i < topology->devices.size(); ++i) {
    uuids.insert(topology->devices[i].uuid);
    CHECK(topology->Link(i, i).reachable);
    CHECK(topology->Link(i, i).path == MemoryPath::kSameDevice);
    for (std::size_t j = 0; j < topology->devices.size(); ++j) {
      const LinkInfo& link = topology->Link(i, j);
      CHECK((link.reachable || !link.note.empty()));
    }
  }
  CHECK(uuids.size() == topology->devices.size());
}

TEST_CASE("CUDA backend: memory that no region has is summed in pieces, as its bytes are in host memory", "[gpu]") {
  KVM_NEED_GPUS(1);
  const auto backend = BackendOf(0);
  Random random(22);
  const std::uint64_t size = 3 * 4096 + 21;
  LocalRegion region(backend, Geometry::Contiguous(1, size), {size});
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.Next());
  KVM_REQUIRE_OK(backend->WriteBytes(*region.memory, 0, 0, bytes));
  const auto sums = ChecksumMemory(region.memory->SegmentData(0), size, 4096, backend->device_uuid());
  KVM_REQUIRE_OK(sums);
  CHECK(*sums == *ChecksumMemory(bytes.data(), size, 4096, kHostMemory));
}

}  // namespace
