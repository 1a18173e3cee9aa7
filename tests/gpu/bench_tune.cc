// Rates of every kernel variant and of the copy engine, for choosing the constants in
// cuda/plan/copy_policy.cc.
#include <cstdio>

#include "cuda/kernels/copy_kernels.h"
#include "cuda/plan/transfer_plan.h"
#include "tests/gpu/bench_setup.h"
#include "tests/gpu/pattern.h"

namespace kvm::bench {
namespace {

using test::MustSucceed;

struct Scratch {
  void* table = nullptr;
  std::uint32_t *arrivals = nullptr, *done = nullptr;
  Scratch() {
    MustSucceed(cudaMalloc(&table, 16 * kMiB), "cudaMalloc");
    MustSucceed(cudaMalloc(reinterpret_cast<void**>(&arrivals), 4), "cudaMalloc");
    MustSucceed(cudaMemset(arrivals, 0, 4), "cudaMemset");
    MustSucceed(cudaMallocHost(reinterpret_cast<void**>(&done), 4), "cudaMallocHost");
  }
};

// Seconds of one variant on the GPU, without validation.
double TimeOf(Importer& importer, const Scratch& scratch, const Geometry& geometry, const std::vector<ImportBlock>& blocks,
              const KernelChoice& choice, int rounds, ReportBy report, bool empty = false) {
  const CopyPlan copy = Must(MakeCopyPlan(geometry, geometry));
  const std::byte* from = importer.source();
  std::byte* to = importer.destination();
  const TransferRun run{&copy, {&from, 1}, 0, 0, importer.peer->path(), &copy, 0, blocks.size()};
  CopyLimits limits;
  limits.forced = choice;
  TransferPlan plan;
  if (const Status planned = PlanTransfer({&run, 1}, blocks, {&to, 1}, limits, plan); !planned) Fail(planned.error().ToString());
  const bool upload = plan.table.size() > kMaxInlineTable;
  if (upload) MustSucceed(cudaMemcpy(scratch.table, plan.table.data(), plan.table.size(), cudaMemcpyHostToDevice), "table");
  CopyArgs args;
  args.group_count = plan.group_count;
  args.piece_count = plan.piece_count;
  args.pair_count = plan.pair_count;
  args.item_count = empty ? 0 : plan.item_count;
  args.unit_bytes = choice.unit_bytes;
  args.report = report;
  args.done_value = 1;
  args.done = scratch.done;
  args.arrivals = scratch.arrivals;
  const void* table = upload ? scratch.table : nullptr;
  return importer.Measure(rounds, [&] { MustSucceed(LaunchCopy(choice, args, plan.table, table, importer.stream()), "launch"); }).gpu;
}

double Try(Importer& importer, const Scratch& scratch, const Geometry& geometry, const std::vector<ImportBlock>& blocks,
           const KernelChoice& choice, int rounds) {
  const double seconds = TimeOf(importer, scratch, geometry, blocks, choice, rounds, ReportBy::kDoneWord);
  return static_cast<double>(blocks.size() * geometry.BlockBytes()) / seconds / 1e9;
}

// What a launch costs before it copies anything.
void FixedCosts(Importer& importer, const Scratch& scratch, std::uint32_t shared) {
  const Geometry geometry = Planes(kPoolBytes, kMiB, 64 * kKiB);
  const std::vector<ImportBlock> one = importer.Scattered(geometry, kMiB);
  std::printf("nothing between two events: %.1f us\n", 1e6 * importer.Measure(51, [] {}).gpu);
  for (const std::uint64_t bytes : {64 * kKiB, kMiB, 16 * kMiB}) {
    std::printf("copy engine, %lu KiB contiguous: %.1f us\n", bytes / kKiB, 1e6 * importer.Contiguous(bytes, 51).gpu);
  }
  // What a table that travels in the launch costs, by its size; one that was uploaded before comes
  // last.
  for (const std::uint64_t blocks : {kMiB, 16 * kMiB, 20 * kMiB, 64 * kMiB, 100 * kMiB, 128 * kMiB}) {
    const Geometry small = Planes(kPoolBytes, 64 * kKiB, 64 * kKiB);
    const KernelChoice choice{KernelKind::kVector, 16, 4096, 24, 512, 0, 0};
    std::printf("empty kernel with a table of %lu pairs: %.1f us\n", blocks / (64 * kKiB),
                1e6 * TimeOf(importer, scratch, small, importer.Scattered(small, blocks), choice, 51, ReportBy::kNobody, true));
  }
  const unsigned stages = shared == 0 ? 0 : std::min(48u, shared / 8192) / 2;
  for (const KernelChoice& choice :
       {KernelChoice{KernelKind::kVector, 16, 4096, 24, 512, 0, 0}, {KernelKind::kBulk, 16, 8192, 24, 512, 2, stages}}) {
    if (choice.kind == KernelKind::kBulk && shared == 0) continue;
    for (const bool empty : {true, false}) {
      for (const ReportBy report : {ReportBy::kNobody, ReportBy::kDoneWord}) {
        std::printf("%s kernel, %s, %s: %.1f us\n", choice.kind == KernelKind::kBulk ? "bulk" : "vector", empty ? "empty" : "1 MiB",
                    report == ReportBy::kNobody ? "no report" : "done word",
                    1e6 * TimeOf(importer, scratch, geometry, one, choice, 51, report, empty));
      }
    }
  }
}

void Kernels(Importer& importer, const Scratch& scratch, std::uint32_t shared, std::uint64_t chunk, std::uint64_t bytes, bool quick) {
  const Geometry geometry = Planes(kPoolBytes, kMiB, chunk);
  const std::vector<ImportBlock> blocks = importer.Scattered(geometry, bytes);
  const int rounds = bytes >= kGiB ? 5 : 21;
  const double contiguous = static_cast<double>(bytes) / importer.Contiguous(bytes, rounds).gpu / 1e9;
  std::printf("chunks of %lu KiB, %lu MiB: contiguous %.0f GB/s; CUDA blocks:GB/s\n", chunk / kKiB, bytes / kMiB, contiguous);
  const std::vector<unsigned> sms =
      quick ? std::vector<unsigned>{8, 16, 32, 132} : std::vector<unsigned>{8, 12, 16, 20, 24, 28, 32, 33, 66, 132};
  for (const unsigned threads : {256u, 512u, 1024u}) {
    std::printf("  vector %4u threads:", threads);
    for (const unsigned n : sms)
      std::printf(" %u:%.0f", n, Try(importer, scratch, geometry, blocks, {KernelKind::kVector, 16, 4096, n, threads, 0, 0}, rounds));
    if (threads < 1024)
      std::printf(" 264:%.0f", Try(importer, scratch, geometry, blocks, {KernelKind::kVector, 16, 4096, 264, threads, 0, 0}, rounds));
    std::printf("\n");
  }
  for (const std::uint32_t unit : {2048u, 4096u, 8192u, 16384u, 32768u}) {
    if (unit > chunk || shared == 0) continue;
    for (const unsigned rings : {1u, 2u, 4u}) {
      const unsigned stages = std::min(48u, shared / unit) / rings;
      if (stages < 5) continue;
      std::printf("  bulk unit %5u, %u rings of %2u:", unit, rings, stages);
      for (const unsigned n : sms)
        std::printf(" %u:%.0f", n, Try(importer, scratch, geometry, blocks, {KernelKind::kBulk, 16, unit, n, 512, rings, stages}, rounds));
      std::printf("\n");
    }
  }
  std::fflush(stdout);
}

// Copies of adjacent blocks: from which run length on is the copy engine as fast as a kernel?
void Engine(Importer& importer) {
  std::printf("copy engine, 256 MiB in runs of (one call each / one batch) GB/s:");
  for (const std::uint64_t run : {64 * kKiB, 256 * kKiB, kMiB, 4 * kMiB, 16 * kMiB, 64 * kMiB}) {
    const std::uint64_t count = 256 * kMiB / run;
    std::vector<const void*> from;
    std::vector<void*> to;
    for (std::uint64_t i = 0; i < count; ++i) {
      from.push_back(importer.source() + 2 * i * run);
      to.push_back(importer.destination() + ((i * 7) % count) * 2 * run);
    }
    const double each =
        importer
            .Measure(5,
                     [&] {
                       for (std::uint64_t i = 0; i < count; ++i) {
                         MustSucceed(cudaMemcpyAsync(to[i], from[i], run, cudaMemcpyDefault, importer.stream()), "cudaMemcpyAsync");
                       }
                     })
            .gpu;
    double batch = 1e9;
#if CUDART_VERSION >= 13000
    std::vector<std::size_t> sizes(count, run);
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    std::size_t first = 0;
    batch = importer
                .Measure(5,
                         [&] {
                           MustSucceed(
                               cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), count, &attributes, &first, 1, importer.stream()),
                               "cudaMemcpyBatchAsync");
                         })
                .gpu;
#endif
    std::printf(" %lu KiB %.0f/%.0f", run / kKiB, 256.0 * kMiB / each / 1e9, 256.0 * kMiB / batch / 1e9);
  }
  std::printf("\n");
}

}  // namespace

void RunTune(int owner, int importer_ordinal, TuneDepth depth) {
  test::ExporterProcess exporter;
  const ExportedPool pool = OpenPool(exporter, owner, layout::HandleKind::kCudaVmmFd);
  for (const int ordinal : {importer_ordinal, owner}) {
    std::printf("importer on GPU %d, owner on GPU %d\n", ordinal, owner);
    Importer importer(ordinal, pool);
    std::uint32_t shared = 0;
    MustSucceed(PrepareCopyKernels(shared), "PrepareCopyKernels");
    const Scratch scratch;
    FixedCosts(importer, scratch, shared);
    if (depth == TuneDepth::kFixedCosts) continue;
    Engine(importer);
    for (const std::uint64_t chunk : {64 * kKiB, 16 * kKiB, 4 * kKiB}) {
      for (const std::uint64_t bytes : {kGiB, 16 * kMiB})
        Kernels(importer, scratch, shared, chunk, bytes, depth == TuneDepth::kQuick || chunk != 64 * kKiB);
    }
    Kernels(importer, scratch, shared, 64 * kKiB, 128 * kMiB, true);
    Kernels(importer, scratch, shared, 64 * kKiB, kMiB, true);
  }
}

}  // namespace kvm::bench
