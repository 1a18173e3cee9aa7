#include "tests/gpu/bench_setup.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <numeric>
#include <utility>

#include "cuda/import/queued_plan.h"
#include "cuda/kernels/copy_kernels.h"
#include "cuda/memory/device_memory.h"
#include "cuda/plan/transfer_plan.h"
#include "tests/gpu/pattern.h"

namespace kvm::bench {
namespace {

using Clock = std::chrono::steady_clock;
using test::MustSucceed;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

double Median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace

void Fail(const std::string& what) {
  std::cerr << "bench_import: " << what << std::endl;
  std::exit(1);
}

Geometry Planes(std::uint64_t pool_bytes, std::uint64_t block_bytes, std::uint64_t chunk_bytes) {
  const auto chunks = static_cast<std::uint32_t>(block_bytes / chunk_bytes);
  const auto blocks = static_cast<std::uint32_t>(pool_bytes / block_bytes);
  return Geometry{blocks, {GeometryPart{0, 0, chunk_bytes, chunk_bytes, chunks, chunks > 1 ? blocks * chunk_bytes : 0}}};
}

ExportedPool OpenPool(test::ExporterProcess& exporter, int ordinal, layout::HandleKind kind) {
  test::ExportOptions options;
  options.ordinal = ordinal;
  options.kind = kind;
  options.geometry = Planes(kPoolBytes, 64 * kKiB, 64 * kKiB);
  options.segment_bytes = {kPoolBytes};
  test::ExportedRegion region = Must(exporter.Open(options));
  ExportedPool pool;
  pool.origin = region.origin;
  pool.bytes = region.segments[0].size_bytes;
  pool.handle = region.segments[0].handle;
  pool.handle_offset = region.segments[0].handle_offset;
  pool.allocation = region.segments[0].allocation;
  pool.allocation_bytes = region.segments[0].allocation_bytes;
  pool.fd = std::move(region.segments[0].fd);
  pool.generations = std::move(region.generation_fd);
  return pool;
}

Importer::Importer(int ordinal_, const ExportedPool& pool) : ordinal(ordinal_) {
  MustSucceed(cudaSetDevice(ordinal), "cudaSetDevice");
  backend = Must(MakeCudaBackend(Must(ListDevices()).at(static_cast<std::size_t>(ordinal)).uuid));
  std::vector<SegmentHandle> segments(1);
  segments[0].size_bytes = pool.bytes;
  segments[0].handle = pool.handle;
  segments[0].handle_offset = pool.handle_offset;
  segments[0].allocation = pool.allocation;
  segments[0].allocation_bytes = pool.allocation_bytes;
  if (pool.fd) segments[0].fd.Reset(::dup(pool.fd.get()));
  peer = Must(backend->Map(std::move(segments), pool.origin));
  generations = Must(MapGenerations(pool.generations.get(), kSmallBlocks));
  if (const Status attached = backend->AttachGenerations(generations); !attached) Fail(attached.error().ToString());
  const std::uint64_t bytes = kPoolBytes;
  memory = Must(backend->Allocate("bench", {&bytes, 1}));
  MustSucceed(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  MustSucceed(cudaEventCreate(&begin_), "event");
  MustSucceed(cudaEventCreate(&end_), "event");
}

Importer::~Importer() {
  cudaEventDestroy(end_);
  cudaEventDestroy(begin_);
  cudaStreamDestroy(stream_);
}

const std::byte* Importer::source() const { return dynamic_cast<const CudaPeerMemory&>(*peer).bases()[0]; }

std::vector<ImportBlock> Importer::Scattered(const Geometry& geometry, std::uint64_t bytes) {
  std::vector<std::uint32_t> from(geometry.block_count), to(geometry.block_count);
  std::iota(from.begin(), from.end(), 0u);
  std::iota(to.begin(), to.end(), 0u);
  for (std::uint32_t i = geometry.block_count; i > 1; --i) {
    std::swap(from[i - 1], from[random_.Below(i)]);
    std::swap(to[i - 1], to[random_.Below(i)]);
  }
  std::vector<ImportBlock> blocks;
  for (std::uint64_t i = 0; i < bytes / geometry.BlockBytes(); ++i) blocks.push_back({from[i], to[i], 2});
  return blocks;
}

std::vector<ImportBlock> Importer::Adjacent(const Geometry& geometry, std::uint64_t bytes) {
  std::vector<ImportBlock> blocks;
  for (std::uint32_t i = 0; i < bytes / geometry.BlockBytes(); ++i) blocks.push_back({i, i, 2});
  return blocks;
}

std::unique_ptr<ImportJob> Importer::Start(const CopyPlan& plan, const std::vector<ImportBlock>& blocks, unsigned max_sms,
                                           std::optional<StreamHandle> stream) {
  ImportRequest request;
  request.destination = memory.get();
  request.runs.push_back({peer.get(), &generations, &plan, 0, blocks.size()});
  request.blocks = blocks;
  request.max_sms = max_sms;
  request.stream = stream;
  return backend->Import(std::move(request));
}

std::vector<double> Importer::ImportTimes(const Geometry& geometry, const std::vector<ImportBlock>& blocks, int rounds, unsigned max_sms) {
  const CopyPlan plan = Must(MakeCopyPlan(geometry, geometry));
  std::vector<double> times;
  for (int round = -5; round < rounds; ++round) {
    const auto begin = Clock::now();
    const auto job = Start(plan, blocks, max_sms);
    job->Wait(SteadyTime::max());
    if (round >= 0) times.push_back(Seconds(Clock::now() - begin));
    for (const BlockStatus status : job->statuses()) {
      if (status != BlockStatus::kValid) Fail("an import failed: block status " + std::to_string(static_cast<int>(status)));
    }
  }
  std::sort(times.begin(), times.end());
  return times;
}

Importer::Time Importer::Import(const Geometry& geometry, const std::vector<ImportBlock>& blocks, unsigned max_sms, int rounds) {
  const CopyPlan plan = Must(MakeCopyPlan(geometry, geometry));
  std::vector<double> host, gpu;
  for (int round = -2; round < rounds; ++round) {
    const auto begin = Clock::now();
    const auto job = Start(plan, blocks, max_sms);
    job->Wait(SteadyTime::max());
    if (round >= 0) host.push_back(Seconds(Clock::now() - begin));
    for (const BlockStatus status : job->statuses()) {
      if (status != BlockStatus::kValid) Fail("an import failed: block status " + std::to_string(static_cast<int>(status)));
    }
  }
  for (int round = -1; round < rounds; ++round) {
    MustSucceed(cudaEventRecord(begin_, stream_), "event");
    const auto job = Start(plan, blocks, max_sms, StreamHandle{reinterpret_cast<std::uintptr_t>(stream_)});
    MustSucceed(cudaEventRecord(end_, stream_), "event");
    MustSucceed(cudaEventSynchronize(end_), "event");
    float ms = 0;
    MustSucceed(cudaEventElapsedTime(&ms, begin_, end_), "event");
    if (round >= 0) gpu.push_back(ms / 1e3);
  }
  return {Median(host), Median(gpu)};
}

Importer::Time Importer::CopyOnly(const Geometry& geometry, const std::vector<ImportBlock>& blocks, int rounds) {
  const CopyPlan copy = Must(MakeCopyPlan(geometry, geometry));
  const std::byte* const from = source();
  std::byte* const to = destination();
  const TransferRun run{&copy, {&from, 1}, 0, 0, peer->path(), &copy, 0, blocks.size()};
  cudaDeviceProp properties{};
  MustSucceed(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  CopyLimits limits;
  limits.sm_count = static_cast<unsigned>(properties.multiProcessorCount);
  MustSucceed(PrepareCopyKernels(limits.bulk_shared_bytes), "PrepareCopyKernels");
  constexpr std::size_t kTableRoom = kMiB;
  std::byte *table = nullptr, *staged = nullptr;
  std::uint32_t *arrivals = nullptr, *done = nullptr;
  MustSucceed(cudaMalloc(reinterpret_cast<void**>(&table), kTableRoom), "cudaMalloc");
  MustSucceed(cudaMallocHost(reinterpret_cast<void**>(&staged), kTableRoom), "cudaMallocHost");
  MustSucceed(cudaMalloc(reinterpret_cast<void**>(&arrivals), sizeof(*arrivals)), "cudaMalloc");
  MustSucceed(cudaMemset(arrivals, 0, sizeof(*arrivals)), "cudaMemset");
  MustSucceed(cudaMallocHost(reinterpret_cast<void**>(&done), sizeof(*done)), "cudaMallocHost");
  TransferPlan plan;
  std::uint32_t job = 0;
  const auto queue = [&] {
    if (const Status planned = PlanTransfer({&run, 1}, blocks, {&to, 1}, limits, plan); !planned) Fail(planned.error().ToString());
    if (plan.table.size() > kTableRoom) Fail("a table larger than the room for it");
    const void* device_table = NeedsUpload(plan) ? table : nullptr;
    if (device_table != nullptr) {
      if (const Status queued = QueueTable(plan, staged, table, stream_); !queued) Fail(queued.error().ToString());
    }
    if (const Status queued = QueueEngineCopies(plan, stream_); !queued) Fail(queued.error().ToString());
    CopyArgs args = ArgsOf(plan);
    args.report = ReportBy::kDoneWord;
    args.done_value = ++job;
    args.done = done;
    args.arrivals = arrivals;
    MustSucceed(LaunchCopy(plan.kernel, args, plan.table, device_table, stream_), "LaunchCopy");
  };
  std::vector<double> host, gpu;
  for (int round = -2; round < rounds; ++round) {
    const auto begin = Clock::now();
    queue();
    while (std::atomic_ref<std::uint32_t>(*done).load(std::memory_order_acquire) != job) continue;
    if (round >= 0) host.push_back(Seconds(Clock::now() - begin));
  }
  for (int round = -1; round < rounds; ++round) {
    MustSucceed(cudaEventRecord(begin_, stream_), "event");
    queue();
    MustSucceed(cudaEventRecord(end_, stream_), "event");
    MustSucceed(cudaEventSynchronize(end_), "event");
    float ms = 0;
    MustSucceed(cudaEventElapsedTime(&ms, begin_, end_), "event");
    if (round >= 0) gpu.push_back(ms / 1e3);
  }
  cudaFree(table);
  cudaFreeHost(staged);
  cudaFree(arrivals);
  cudaFreeHost(done);
  return {Median(host), Median(gpu)};
}

double Importer::CallTime(const Geometry& geometry, const std::vector<ImportBlock>& blocks) {
  const CopyPlan plan = Must(MakeCopyPlan(geometry, geometry));
  std::vector<double> times;
  for (int round = 0; round < 51; ++round) {
    const auto begin = Clock::now();
    const auto job = Start(plan, blocks, 0);
    times.push_back(Seconds(Clock::now() - begin));
    job->Wait(SteadyTime::max());
  }
  return Median(times);
}

Importer::Time Importer::Measure(int rounds, const std::function<void()>& queue) {
  std::vector<double> host, gpu;
  for (int round = -2; round < rounds; ++round) {
    const auto begin = Clock::now();
    queue();
    MustSucceed(cudaStreamSynchronize(stream_), "measure");
    if (round >= 0) host.push_back(Seconds(Clock::now() - begin));
  }
  for (int round = -1; round < rounds; ++round) {
    MustSucceed(cudaEventRecord(begin_, stream_), "event");
    queue();
    MustSucceed(cudaEventRecord(end_, stream_), "event");
    MustSucceed(cudaEventSynchronize(end_), "event");
    float ms = 0;
    MustSucceed(cudaEventElapsedTime(&ms, begin_, end_), "event");
    if (round >= 0) gpu.push_back(ms / 1e3);
  }
  return {Median(host), Median(gpu)};
}

Importer::Time Importer::Contiguous(std::uint64_t bytes, int rounds) {
  return Measure(rounds,
                 [&] { MustSucceed(cudaMemcpyAsync(destination(), source(), bytes, cudaMemcpyDefault, stream_), "cudaMemcpyAsync"); });
}

}  // namespace kvm::bench
