// The marketplace on GPUs as its users run it: a real kvmd, libkvclient, regions on GPUs.
#include <atomic>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "client/client_impl.h"
#include "tests/gpu/blocked_stream.h"
#include "tests/gpu/local_region.h"
#include "tests/gpu/market_processes.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/process/child_main.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace kvm::test;
using namespace std::chrono_literals;
using layout::HandleKind;

NamedGeometry Pool(std::uint32_t blocks, std::uint64_t block_bytes = 64 << 10) {
  return {"pool", Geometry::Contiguous(blocks, block_bytes), {blocks * block_bytes}};
}

std::unique_ptr<GpuWorker> Start(const KvmdProcess& kvmd, const std::string& name, int ordinal, HandleKind kind = HandleKind::kCudaVmmFd,
                                 NamedGeometry layout = Pool(64), bool one_allocation = false) {
  GpuWorkerOptions options;
  options.socket = kvmd.socket();
  options.name = name;
  options.ordinal = ordinal;
  options.kind = kind;
  options.layout = std::move(layout);
  options.one_allocation = one_allocation;
  Result<std::unique_ptr<GpuWorker>> worker = GpuWorker::Start(std::move(options));
  KVM_REQUIRE_OK(worker);
  return std::move(*worker);
}

// The other GPU where there are two.
int Other() {
  std::string why;
  return UsableGpus(why) > 1 ? 1 : 0;
}

std::vector<Content> ExporterContents(std::uint32_t number, std::uint32_t count) {
  std::vector<Content> contents;
  for (std::uint32_t block = 0; block < count; ++block) contents.push_back(ExporterContent(number, block, 2));
  return contents;
}

TEST_CASE("GPU market: every kind of memory in every layout is found and imported by another process", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 64;
  KvmdProcess kvmd;
  std::uint32_t number = 0;
  for (const int importer : {0, Other()}) {
    auto worker = Start(kvmd, "importer-" + std::to_string(number), importer, HandleKind::kCudaVmmFd, Pool(kBlocks, 96 << 10));
    for (const HandleKind kind : {HandleKind::kCudaVmmFd, HandleKind::kCudaIpc}) {
      INFO("importer on GPU " << importer << ", kind " << static_cast<int>(kind));
      ExporterOptions options;
      options.socket = kvmd.socket();
      options.number = ++number;
      options.kind = kind;
      options.blocks = kBlocks;
      options.block_bytes = 96 << 10;
      options.rewrites = false;
      ChildProcess exporter = StartExporter(options);
      REQUIRE(exporter.ReadLine(60s) == "ready");
      const std::vector<Content> contents = ExporterContents(number, kBlocks);
      REQUIRE(Eventually([&] { return worker->Find(contents).size() == kBlocks; }));
      const GpuImportCheck check = worker->Import(worker->Find(contents), contents, 0);
      CHECK(check.valid == kBlocks);
      CHECK(check.wrong == 0);
      CHECK(worker->client().UnmappedRegions().empty());
    }
  }
}

TEST_CASE("GPU market: engines' layouts over memory of cudaMalloc import into each other", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 32;
  KvmdProcess kvmd;
  const std::vector<NamedGeometry> layouts = EngineLayouts(kBlocks);
  std::uint32_t first = 0;
  for (const NamedGeometry& layout : layouts) {
    for (const bool one_allocation : {false, true}) {
      INFO(layout.name << (one_allocation ? ", one allocation" : ""));
      auto owner = Start(kvmd, "owner", 0, HandleKind::kCudaIpc, layout, one_allocation);
      const std::vector<Content> contents = Contents(first += kBlocks, kBlocks);
      KVM_REQUIRE_OK(owner->Publish(contents, 0));
      // Its own blocks, into a region of another layout of the same client.
      RegionOptions options;
      options.name = "second";
      options.device = UuidOfOrdinal(0);
      options.geometry = layouts[4].geometry;
      auto second = owner->client().AllocateRegion(owner->model(), options, After(10s));
      KVM_REQUIRE_OK(second);
      Pattern pattern(layouts[4].geometry, std::vector<std::byte*>{(*second)->SegmentData()});
      std::vector<BlockKey> keys;
      std::vector<std::uint32_t> blocks;
      std::vector<PatternBlock> expected;
      for (std::uint32_t i = 0; i < kBlocks; ++i) {
        keys.push_back(KeyOf(contents[i]));
        blocks.push_back(kBlocks - 1 - i);
        expected.push_back({kBlocks - 1 - i, contents[i].tag, contents[i].version});
      }
      FindOptions find;
      find.destination = second->get();
      auto ticket = owner->client().Import(owner->client().Find(keys, find), **second, blocks);
      KVM_REQUIRE_OK(ticket);
      KVM_REQUIRE_OK(ticket->Wait(After(10s)));
      CHECK(ticket->result().valid == kBlocks);
      for (const bool wrong : pattern.Wrong(expected)) REQUIRE_FALSE(wrong);
    }
  }
}

TEST_CASE("GPU market: new memory is zeroed", "[gpu]") {
  KVM_NEED_GPUS(1);
  KvmdProcess kvmd;
  for (int round = 0; round < 2; ++round) {
    auto worker = Start(kvmd, "worker", 0, HandleKind::kCudaVmmFd, Pool(16));
    std::vector<std::byte> bytes(16 * (64 << 10));
    KVM_REQUIRE_OK(worker->region().ReadBytes(0, 0, bytes));
    CHECK(std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; }));
    KVM_REQUIRE_OK(worker->Publish(Contents(0, 16), 0));  // dirty, for the next round
  }
}

TEST_CASE("GPU market: the nearest source is chosen, and the next one when it goes", "[gpu]") {
  KVM_NEED_GPUS(2);
  constexpr std::uint32_t kBlocks = 32;
  KvmdProcess kvmd;
  const std::vector<Content> contents = Contents(0, kBlocks);
  auto reader = Start(kvmd, "reader", 1, HandleKind::kCudaVmmFd, Pool(kBlocks));
  auto host = Start(kvmd, "host", 0, HandleKind::kHostMemfd, Pool(kBlocks));
  auto far = Start(kvmd, "far", 0, HandleKind::kCudaVmmFd, Pool(kBlocks));
  auto same = Start(kvmd, "same", 1, HandleKind::kCudaIpc, Pool(kBlocks));
  for (GpuWorker* owner : {host.get(), far.get(), same.get()}) KVM_REQUIRE_OK(owner->Publish(contents, 0));
  const auto region_of = [&](const Match& match, std::size_t i) {
    layout::RegionInfo info{};
    const auto snapshot = reader->client().impl().peers.Get().current;
    return snapshot->registry.ReadRegion(match[i].region, info) ? std::string(info.name) : std::string();
  };
  const auto all_from = [&](const std::string& name) {
    const Match match = reader->Find(contents);
    bool all = match.size() == kBlocks;
    for (std::size_t i = 0; i < match.size(); ++i) all = all && region_of(match, i) == name;
    return all;
  };
  for (auto [owner, name] : {std::pair{&same, "same"}, {&far, "far"}, {&host, "host"}}) {
    INFO(name);
    REQUIRE(Eventually([&] { return all_from(name); }));
    const GpuImportCheck check = reader->Import(reader->Find(contents), contents, 0);
    CHECK(check.valid == kBlocks);
    CHECK(check.wrong == 0);
    owner->reset();
  }
}

TEST_CASE("GPU market: a GPU that joins later imports what was announced before", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 16;
  KvmdProcess kvmd;
  ExporterOptions options;
  options.socket = kvmd.socket();
  options.number = 1;
  options.blocks = kBlocks;
  options.rewrites = false;
  ChildProcess exporter = StartExporter(options);
  REQUIRE(exporter.ReadLine(60s) == "ready");
  ClientOptions client_options;
  client_options.socket_path = kvmd.socket();
  const auto client = Client::Connect(client_options);
  KVM_REQUIRE_OK(client);
  const auto model = (*client)->DeclareModel(SmallSpec(), After(10s));
  KVM_REQUIRE_OK(model);
  std::vector<BlockKey> keys;
  for (const Content& content : ExporterContents(1, kBlocks)) keys.push_back(KeyOf(content));
  CHECK((*client)->Find(keys).size() == kBlocks);  // known, though out of reach
  REQUIRE((*client)->UnmappedRegions().size() == 1);
  CHECK((*client)->UnmappedRegions()[0].name == "exporter-1");

  RegionOptions region_options;
  region_options.name = "pool";
  region_options.device = UuidOfOrdinal(Other());
  region_options.geometry = Geometry::Contiguous(kBlocks, 64 << 10);
  auto region = (*client)->AllocateRegion(*model, region_options, After(30s));
  KVM_REQUIRE_OK(region);
  CHECK((*client)->UnmappedRegions().empty());
  FindOptions find;
  find.destination = region->get();
  const Match match = (*client)->Find(keys, find);
  REQUIRE(match.size() == kBlocks);
  std::vector<std::uint32_t> blocks(kBlocks);
  for (std::uint32_t i = 0; i < kBlocks; ++i) blocks[i] = i;
  auto ticket = (*client)->Import(match, **region, blocks);
  KVM_REQUIRE_OK(ticket);
  KVM_REQUIRE_OK(ticket->Wait(After(10s)));
  CHECK(ticket->result().valid == kBlocks);
}

TEST_CASE("GPU market: a host destination can't reach GPU memory, and the match says so", "[gpu]") {
  KVM_NEED_GPUS(1);
  KvmdProcess kvmd;
  auto owner = Start(kvmd, "owner", 0, HandleKind::kCudaVmmFd, Pool(8));
  auto reader = Start(kvmd, "reader", 0, HandleKind::kHostMemfd, Pool(8));
  const std::vector<Content> contents = Contents(0, 8);
  KVM_REQUIRE_OK(owner->Publish(contents, 0));
  const Match match = reader->Find(contents);
  CHECK(match.empty());
  CHECK(match.end() == MatchEnd::kUnmapped);
  std::vector<BlockKey> keys;
  for (const Content& content : contents) keys.push_back(KeyOf(content));
  const Match anywhere = reader->client().Find(keys);
  REQUIRE(anywhere.size() == 8);
  const GpuImportCheck check = reader->Import(anywhere, {}, 0);
  CHECK(check.valid == 0);
  REQUIRE(check.failed.size() == 8);
  CHECK(check.failed[0].reason == ImportFailure::kUnmapped);
}

// What an importer finds of exporter 1's 16 blocks and validates, and how many of these come from
// the host cache; why it can't map the exporter's memory. Stays until its input closes.
const ChildMain far_main("market_far_importer", [](const std::vector<std::string>& arguments) {
  ::setenv("KVM_FAULT_SWITCH", arguments.at(1).c_str(), 1);
  GpuWorkerOptions options;
  options.socket = arguments.at(0);
  options.name = "far";
  options.layout = Pool(16);
  Result<std::unique_ptr<GpuWorker>> worker = GpuWorker::Start(options);
  if (!worker) return 1;
  const std::vector<Content> contents = ExporterContents(1, 16);
  const Match match = (*worker)->Find(contents);
  const GpuImportCheck check = match.empty() ? GpuImportCheck{} : (*worker)->Import(match, contents, 0);
  std::cout << "found " << match.size() << ", valid " << check.valid << ", wrong " << check.wrong << ", host cache "
            << (*worker)->client().Stats().blocks_from_host_cache << (match.end() == MatchEnd::kUnmapped ? ", unmapped" : "") << std::endl;
  for (const UnmappedRegion& region : (*worker)->client().UnmappedRegions()) std::cout << region.reason.ToString() << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
  }
  return 0;
});

TEST_CASE("GPU market: where the owner's GPU can't be reached, blocks come from the host cache or are misses", "[gpu]") {
  KVM_NEED_GPUS(1);
  struct Case {
    const char *fault, *reason;
  };
  for (const Case& each : {Case{"gpu_no_peer_access", "no peer access"}, Case{"gpu_not_visible", "is not visible to this process"}}) {
    INFO(each.fault);
    for (const bool host_cache : {false, true}) {
      KvmdProcess kvmd(host_cache ? std::vector<std::string>{"--host-cache", "64M"} : std::vector<std::string>{});
      ExporterOptions options;
      options.socket = kvmd.socket();
      options.number = 1;
      options.blocks = 16;
      options.rewrites = false;
      ChildProcess exporter = StartExporter(options);
      REQUIRE(exporter.ReadLine(60s) == "ready");
      if (host_cache) {
        RegistryProbe probe(kvmd.socket());
        REQUIRE(StoredEventually(probe, 16) == 16);
      }
      ChildProcess importer = ChildProcess::Self("market_far_importer", {kvmd.socket(), each.fault});
      CHECK(importer.ReadLine(60s) ==
            (host_cache ? "found 16, valid 16, wrong 0, host cache 16" : "found 0, valid 0, wrong 0, host cache 0, unmapped"));
      const std::optional<std::string> reason = importer.ReadLine(10s);
      REQUIRE(reason);
      CHECK(reason->find(each.reason) != reason->npos);
      // Clients report once a second.
      const Sandbox sandbox;
      Sandbox::Output doctor;
      CHECK(Eventually([&] {
        doctor = sandbox.Run("--socket " + kvmd.socket() + " doctor");
        return doctor.out.find("can't import from 1 region of its peers") != doctor.out.npos;
      }));
      INFO(doctor.out << doctor.err);
      CHECK(doctor.out.find(each.reason) != doctor.out.npos);
      importer.CloseInput();
      const std::optional<ProcessEnd> end = importer.Wait(60s);
      REQUIRE(end);
      CHECK(end->clean());
    }
  }
}

TEST_CASE("GPU market: publishing on a stream takes effect when the stream gets there, not before", "[gpu]") {
  KVM_NEED_GPUS(1);
  KvmdProcess kvmd;
  auto owner = Start(kvmd, "owner", 0), reader = Start(kvmd, "reader", Other());
  const std::vector<Content> contents = Contents(0, 4);
  const std::vector<std::uint32_t> blocks{3, 1, 0, 2};
  {
    // Written first: making pinned memory may wait for the whole GPU, the blocked stream too.
    const std::vector<PublishRequest> requests = owner->Write(contents, blocks);
    MustSucceed(cudaSetDevice(0), "cudaSetDevice");
    BlockedStream stream;
    KVM_REQUIRE_OK(owner->region().PublishOnStream(requests, stream.handle()));
    KVM_CHECK_ERROR(owner->region().Flush(After(50ms)), Errc::kDeadlineExceeded, "stream");
    CHECK(reader->Find(contents).empty());
    CHECK_FALSE(IsReadable(owner->region().CurrentGeneration(3)));
    stream.Release();
    KVM_REQUIRE_OK(owner->region().Flush(After(10s)));
    CHECK(reader->Find(contents).size() == 4);
    CHECK(reader->Import(reader->Find(contents), contents, 0).wrong == 0);
  }
  {
    // A block that is written anew meanwhile is not published by the older call.
    const std::vector<Content> next = Contents(100, 4);
    const std::vector<PublishRequest> requests = owner->Write(next, blocks);
    MustSucceed(cudaSetDevice(0), "cudaSetDevice");
    BlockedStream stream;
    KVM_REQUIRE_OK(owner->region().PublishOnStream(requests, stream.handle()));
    owner->region().Retract(blocks[2]);
    stream.Release();
    KVM_REQUIRE_OK(owner->region().Flush(After(10s)));
    CHECK(reader->Find(next).size() == 2);
  }
  {
    // The region goes before the stream gets there.
    const std::vector<PublishRequest> requests = owner->Write(Contents(200, 4), blocks);
    MustSucceed(cudaSetDevice(0), "cudaSetDevice");
    BlockedStream stream;
    KVM_REQUIRE_OK(owner->region().PublishOnStream(requests, stream.handle()));
    std::thread release([&] {
      std::this_thread::sleep_for(200ms);
      stream.Release();
    });
    owner.reset();
    release.join();
    CHECK(reader->Find(Contents(200, 4)).empty());
  }
}

TEST_CASE("GPU market: an import on the caller's stream keeps its order there, and has an event", "[gpu]") {
  KVM_NEED_GPUS(1);
  KvmdProcess kvmd;
  auto owner = Start(kvmd, "owner", 0), reader = Start(kvmd, "reader", Other());
  const std::vector<Content> contents = Contents(0, 16);
  KVM_REQUIRE_OK(owner->Publish(contents, 0));
  REQUIRE(Eventually([&] { return reader->Find(contents).size() == 16; }));
  MustSucceed(cudaSetDevice(Other()), "cudaSetDevice");
  BlockedStream stream;
  ImportOptions options;
  options.stream = stream.handle();
  options.max_sms = 4;
  options.wants_event = true;
  std::vector<std::uint32_t> blocks(16);
  for (std::uint32_t i = 0; i < 16; ++i) blocks[i] = 15 - i;
  auto ticket = reader->client().Import(reader->Find(contents), reader->region(), blocks, options);
  KVM_REQUIRE_OK(ticket);
  REQUIRE(ticket->event() != nullptr);
  CHECK_FALSE(ticket->Done());
  CHECK(cudaEventQuery(static_cast<cudaEvent_t>(ticket->event())) == cudaErrorNotReady);
  KVM_CHECK_ERROR(ticket->Wait(After(20ms)), Errc::kDeadlineExceeded, "");
  stream.Release();
  MustSucceed(cudaEventSynchronize(static_cast<cudaEvent_t>(ticket->event())), "event");
  KVM_REQUIRE_OK(ticket->Wait(After(10s)));
  CHECK(ticket->result().valid == 16);
  std::vector<Content> reversed(contents.rbegin(), contents.rend());
  CHECK(reader->CountWrong(reversed, 0) == 0);
}

TEST_CASE("GPU market: checksums are computed where the blocks are, and compared where they arrive", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 32;
  KvmdProcess kvmd;
  GpuWorkerOptions options;
  options.socket = kvmd.socket();
  options.name = "owner";
  options.layout = Pool(kBlocks);
  options.checksums = true;
  auto owner = GpuWorker::Start(options);
  KVM_REQUIRE_OK(owner);
  auto reader = Start(kvmd, "reader", Other());
  const std::vector<Content> contents = Contents(0, kBlocks);
  KVM_REQUIRE_OK((*owner)->Publish(contents, 0));
  REQUIRE(Eventually([&] { return reader->Find(contents).size() == kBlocks; }));
  ImportOptions verify;
  verify.verify = true;
  CHECK(reader->Import(reader->Find(contents), contents, 0, verify).valid == kBlocks);
  const std::vector<std::byte> fault(1, std::byte{0x5a});
  KVM_REQUIRE_OK((*owner)->region().WriteBytes(0, 20 * (64 << 10) + 17, fault));
  CHECK(reader->Import(reader->Find(contents), contents, 0).wrong == 1);
  const GpuImportCheck check = reader->Import(reader->Find(contents), contents, 0, verify);
  CHECK(check.valid == 20);
  CHECK(check.wrong == 0);
  REQUIRE(check.failed.size() == kBlocks - 20);
  CHECK(check.failed[0].reason == ImportFailure::kCorrupt);
}

TEST_CASE("GPU market: memory that can't be exported is refused with what can", "[gpu]") {
  KVM_NEED_GPUS(1);
  KvmdProcess kvmd;
  auto worker = Start(kvmd, "worker", 0);
  RegionOptions options;
  options.name = "engine";
  options.geometry = Geometry::Contiguous(4, 64 << 10);
  const auto attempt = [&](void* data) {
    const DeviceRange range{data, 4 * (64 << 10)};
    return worker->client().RegisterRegion(worker->model(), options, {&range, 1}, After(10s));
  };
  void* pooled = nullptr;
  MustSucceed(cudaMallocAsync(&pooled, 4 * (64 << 10), nullptr), "cudaMallocAsync");
  MustSucceed(cudaDeviceSynchronize(), "cudaMallocAsync");
  KVM_CHECK_ERROR(attempt(pooled), Errc::kUnsupported, "engine");
  MustSucceed(cudaFreeAsync(pooled, nullptr), "cudaFreeAsync");
  std::vector<std::byte> host(4 * (64 << 10));
  KVM_CHECK_ERROR(attempt(host.data()), Errc::kInvalidArgument, "");
  void* small = nullptr;
  MustSucceed(cudaMalloc(&small, 64 << 10), "cudaMalloc");
  KVM_CHECK_ERROR(attempt(static_cast<std::byte*>(small) + (32 << 10)), Errc::kInvalidArgument, "leave their allocation");
  MustSucceed(cudaFree(small), "cudaFree");
  options.device[0] ^= 0xFF;
  RegionOptions nowhere = options;
  KVM_CHECK_ERROR(worker->client().AllocateRegion(worker->model(), nowhere, After(10s)), Errc::kNotFound, "not visible");
}

// Child: a process that sees only some GPUs imports what exporter argv[1] holds; argv[2]:
// CUDA_VISIBLE_DEVICES. 0: all valid and right; 4: unmapped, the reason on its output.
const ChildMain narrow_main("market_narrow_view", [](const std::vector<std::string>& arguments) {
  ::setenv("CUDA_VISIBLE_DEVICES", arguments.at(2).c_str(), 1);
  GpuWorkerOptions options;
  options.socket = arguments.at(0);
  options.name = "narrow";
  options.ordinal = 0;
  options.layout = Pool(16);
  Result<std::unique_ptr<GpuWorker>> worker = GpuWorker::Start(options);
  if (!worker) return 1;
  const std::vector<Content> contents = ExporterContents(static_cast<std::uint32_t>(std::stoul(arguments.at(1))), 16);
  const Match match = (*worker)->Find(contents);
  if (match.end() == MatchEnd::kUnmapped) {
    const std::vector<UnmappedRegion> unmapped = (*worker)->client().UnmappedRegions();
    std::cout << (unmapped.empty() ? "no reason" : unmapped[0].reason.ToString()) << std::endl;
    return 4;
  }
  const GpuImportCheck check = (*worker)->Import(match, contents, 0);
  return check.valid == 16 && check.wrong == 0 ? 0 : 2;
});

TEST_CASE("GPU market: CUDA_VISIBLE_DEVICES in any order, and without the owner's GPU", "[gpu]") {
  KVM_NEED_GPUS(2);
  KvmdProcess kvmd;
  ExporterOptions options;
  options.socket = kvmd.socket();
  options.number = 1;
  options.ordinal = 0;
  options.blocks = 16;
  options.rewrites = false;
  ChildProcess exporter = StartExporter(options);
  REQUIRE(exporter.ReadLine(60s) == "ready");
  for (const char* visible : {"0,1", "1,0", "0", "1"}) {
    INFO(visible);
    ChildProcess narrow = ChildProcess::Self("market_narrow_view", {kvmd.socket(), "1", visible});
    const bool hidden = std::string(visible) == "1";
    if (hidden) {
      const std::optional<std::string> reason = narrow.ReadLine(60s);
      REQUIRE(reason);
      CHECK(reason->find("not visible") != std::string::npos);
    }
    const std::optional<ProcessEnd> end = narrow.Wait(60s);
    REQUIRE(end);
    CHECK(end->code == (hidden ? 4 : 0));
  }
}

}  // namespace
