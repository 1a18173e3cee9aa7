// The rows of the import benchmark, each against a contiguous copy of the same bytes in the same
// run.
#include <algorithm>
#include <atomic>
#include <iostream>
#include <thread>

#include "cuda/topology/topology.h"
#include "tests/gpu/bench_setup.h"
#include "tests/gpu/gemm.h"
#include "tests/gpu/pattern.h"

namespace kvm::bench {
namespace {

using layout::HandleKind;
using test::MustSucceed;

std::string Size(std::uint64_t bytes) {
  if (bytes >= kGiB) return std::to_string(bytes / kGiB) + " GiB";
  if (bytes >= kMiB) return std::to_string(bytes / kMiB) + " MiB";
  return std::to_string(bytes / kKiB) + " KiB";
}
std::string Rate(std::uint64_t bytes, double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f GB/s", static_cast<double>(bytes) / seconds / 1e9);
  return text;
}

// A pool seen as blocks of 1 MiB in chunks of `chunk` bytes.
Geometry Blocks(std::uint64_t chunk) { return Planes(kPoolBytes, kMiB, chunk); }
Geometry SmallBlocks() { return Planes(kPoolBytes, 64 * kKiB, 64 * kKiB); }

void AddRatio(Report& report, const std::string& what, std::uint64_t bytes, const Importer::Time& time, const Importer::Time& base,
              double reach) {
  report.Add({what + ": of contiguous", base.host / time.host, "x", reach, false,
              Rate(bytes, time.host) + " against " + Rate(bytes, base.host) + " (on the GPU " + Rate(bytes, time.gpu) + " against " +
                  Rate(bytes, base.gpu) + ")"});
}

void ScatteredRows(Report& report, Importer& importer) {
  const Importer::Time base = importer.Contiguous(kGiB);
  for (const std::uint64_t chunk : {64 * kKiB, 16 * kKiB}) {
    const std::vector<ImportBlock> blocks = importer.Scattered(Blocks(chunk), kGiB);
    for (const auto& [sms, reach] : {std::pair{0u, 0.92}, {32u, 0.92}, {16u, 0.85}, {8u, 0.0}}) {
      const std::string bound = sms == 0 ? "" : ", at most " + std::to_string(sms) + " SMs";
      AddRatio(report, "1 GiB in " + Size(chunk) + " chunks" + bound, kGiB, importer.Import(Blocks(chunk), blocks, sms), base, reach);
    }
  }
  AddRatio(report, "1 GiB in 4 KiB chunks", kGiB, importer.Import(Blocks(4 * kKiB), importer.Scattered(Blocks(4 * kKiB), kGiB)), base, 0);
  AddRatio(report, "1 GiB in 64 KiB blocks of one chunk", kGiB, importer.Import(SmallBlocks(), importer.Scattered(SmallBlocks(), kGiB)),
           base, 0);
  AddRatio(report, "1 GiB adjacent (copy engine)", kGiB, importer.Import(SmallBlocks(), Importer::Adjacent(SmallBlocks(), kGiB)), base, 0);
  for (const auto& [bytes, reach] : {std::pair{128 * kMiB, 0.90}, {16 * kMiB, 0.85}, {4 * kMiB, 0.0}, {kMiB, 0.0}}) {
    const Importer::Time smaller = importer.Contiguous(bytes, 51);
    const Geometry geometry = Blocks(64 * kKiB);
    AddRatio(report, Size(bytes) + " in 64 KiB chunks", bytes, importer.Import(geometry, importer.Scattered(geometry, bytes), 0, 51),
             smaller, reach);
  }
}

void LibraryRows(Report& report, Importer& importer) {
  const Geometry geometry = SmallBlocks();
  const std::vector<ImportBlock> blocks = importer.Scattered(geometry, kGiB);
  const std::uint64_t bytes = 64 * kKiB;
  std::vector<const void*> from;
  std::vector<void*> to;
  for (const ImportBlock& block : blocks) {
    from.push_back(importer.source() + block.source_block * bytes);
    to.push_back(importer.destination() + block.destination_block * bytes);
  }
  const Importer::Time ours = importer.Import(Blocks(64 * kKiB), importer.Scattered(Blocks(64 * kKiB), kGiB));
  const Importer::Time single = importer.Measure(3, [&] {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      MustSucceed(cudaMemcpyAsync(to[i], from[i], bytes, cudaMemcpyDefault, importer.stream()), "cudaMemcpyAsync");
    }
  });
  report.Add(
      {"1 GiB in 64 KiB: against one cudaMemcpyAsync each", single.host / ours.host, "x", 17, false, "theirs " + Rate(kGiB, single.host)});
#if CUDART_VERSION >= 13000
  std::vector<std::size_t> sizes(blocks.size(), bytes);
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  std::size_t first = 0;
  const Importer::Time batch = importer.Measure(3, [&] {
    MustSucceed(cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), sizes.size(), &attributes, &first, 1, importer.stream()),
                "cudaMemcpyBatchAsync");
  });
  report.Add({"1 GiB in 64 KiB: against cudaMemcpyBatchAsync", batch.host / ours.host, "x", 5, false, "theirs " + Rate(kGiB, batch.host)});
#endif
}

void LatencyRows(Report& report, Importer& importer) {
  const auto add = [&](const std::string& what, const Geometry& geometry, unsigned sms, double reach) {
    const std::vector<double> times = importer.ImportTimes(geometry, importer.Scattered(geometry, kMiB), 2000, sms);
    char note[64];
    std::snprintf(note, sizeof(note), "p90 %.1f us, p99 %.1f us", times[1800] * 1e6, times[1980] * 1e6);
    report.Add({what, times[1000] * 1e6, "us", reach, true, note});
  };
  const auto add_call = [&](const std::string& what, const Geometry& geometry, std::uint64_t bytes) {
    report.Add(
        {"the submitting call alone, " + what, importer.CallTime(geometry, importer.Scattered(geometry, bytes)) * 1e6, "us", 0, true, ""});
  };
  add("import of 1 MiB, submitted to validated, p50", Blocks(64 * kKiB), 0, 40);
  add("… as 16 blocks of 64 KiB", SmallBlocks(), 0, 40);
  add("… with at most 16 SMs", Blocks(64 * kKiB), 16, 40);
  add_call("1 block of 1 MiB", Blocks(64 * kKiB), kMiB);
  add_call("16 blocks of 1 MiB", Blocks(64 * kKiB), 16 * kMiB);
  add_call("2048 blocks of 64 KiB", SmallBlocks(), 128 * kMiB);
  add_call("16384 blocks of 64 KiB", SmallBlocks(), kGiB);
}

void ValidationRows(Report& report, Importer& importer) {
  for (const auto& [name, geometry] : {std::pair{"128 blocks of 1 MiB", Blocks(64 * kKiB)}, {"2048 blocks of 64 KiB", SmallBlocks()}}) {
    const std::vector<ImportBlock> blocks = importer.Scattered(geometry, 128 * kMiB);
    // In turns, so that a drift of the machine meets both.
    Importer::Time with{1, 1}, without{1, 1};
    for (int turn = 0; turn < 5; ++turn) {
      const Importer::Time a = importer.Import(geometry, blocks, 0, 41);
      const Importer::Time b = importer.CopyOnly(geometry, blocks, 41);
      with = {std::min(with.host, a.host), std::min(with.gpu, a.gpu)};
      without = {std::min(without.host, b.host), std::min(without.gpu, b.gpu)};
    }
    char note[96];
    std::snprintf(note, sizeof(note), "%.1f us of %.1f us (on the GPU %.1f of %.1f)", (with.host - without.host) * 1e6, with.host * 1e6,
                  (with.gpu - without.gpu) * 1e6, with.gpu * 1e6);
    report.Add({std::string("validation's share of 128 MiB, ") + name, 100 * (with.host - without.host) / with.host, "%", 3, true, note});
  }
}

// Imports without a pause in a thread of their own.
class Continuous {
 public:
  Continuous(Importer& importer, unsigned sms) {
    thread_ = std::thread([this, &importer, sms] {
      MustSucceed(cudaSetDevice(importer.ordinal), "cudaSetDevice");
      const Geometry geometry = Blocks(64 * kKiB);
      const CopyPlan plan = Must(MakeCopyPlan(geometry, geometry));
      const std::vector<ImportBlock> blocks = importer.Scattered(geometry, 128 * kMiB);
      while (!stop_) {
        importer.Start(plan, blocks, sms)->Wait(SteadyTime::max());
        bytes_ += 128 * kMiB;
      }
    });
  }
  std::uint64_t Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    return bytes_;
  }
  ~Continuous() { Stop(); }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> bytes_{0};
  std::thread thread_;
};

void SlowdownRows(Report& report, Importer& importer, test::ExporterProcess& exporter) {
  constexpr double kSeconds = 1.0;
  const auto add = [&](const std::string& where, const std::function<double()>& gemm) {
    const double alone = gemm();
    if (alone == 0.0) return;
    Continuous imports(importer, 16);
    const auto begin = std::chrono::steady_clock::now();
    const double together = gemm();
    const std::uint64_t bytes = imports.Stop();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    char note[96];
    std::snprintf(note, sizeof(note), "%.0f against %.0f TFLOP/s, imports at %.0f GB/s", together, alone,
                  static_cast<double>(bytes) / seconds / 1e9);
    report.Add(
        {"bf16 GEMM loop on the " + where + "'s GPU, slowed by imports with 16 SMs", 100 * (1 - together / alone), "%", 0, true, note});
  };
  add("exporter", [&] { return exporter.Gemm(kSeconds); });
  add("importer", [&] { return test::GemmTeraflops(importer.ordinal, kSeconds); });
}

void ChecksumRow(Report& report, Importer& importer) {
  const Geometry geometry = Blocks(64 * kKiB);
  std::vector<std::uint32_t> blocks;
  for (const ImportBlock& block : importer.Scattered(geometry, kGiB)) blocks.push_back(block.destination_block);
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    Must(importer.backend->Checksum(*importer.memory, geometry, blocks));
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  report.Add({"checksums of 1 GiB", kGiB / best / 1e9, "GB/s", 0, false, "1,024 blocks, as the caller sees it"});
}

void TopologyRows(Report& report) {
  Topology topology = Must(ReadTopology());
  if (const Status measured = MeasureTopology(topology); !measured) Fail(measured.error().ToString());
  for (std::size_t i = 0; i < topology.devices.size(); ++i) {
    for (std::size_t j = 0; j < topology.devices.size(); ++j) {
      const LinkInfo& link = topology.Link(i, j);
      report.Add({"topology: GPU " + std::to_string(i) + " reads GPU " + std::to_string(j), link.measured_gb_per_s, "GB/s", 0, false,
                  std::string(MemoryPathName(link.path)) + ", " + std::to_string(link.nvlinks) + " links " + link.note});
    }
  }
}

}  // namespace

void RunRows(Report& report, int owner, int importer_ordinal) {
  test::ExporterProcess exporter;
  const ExportedPool pool = OpenPool(exporter, owner, HandleKind::kCudaVmmFd);
  {
    Importer importer(importer_ordinal, pool);
    report.Add({"mapping", importer.peer->read_only() ? 1.0 : 0.0, "read-only", 0, false,
                std::string(MemoryPathName(importer.peer->path())) + "; " + importer.peer->detail()});
    ScatteredRows(report, importer);
    LibraryRows(report, importer);
    LatencyRows(report, importer);
    ValidationRows(report, importer);
    ChecksumRow(report, importer);
    SlowdownRows(report, importer, exporter);
  }
  {
    Importer same(owner, pool);
    const Importer::Time base = same.Contiguous(kGiB);
    for (const std::uint64_t chunk : {64 * kKiB, 16 * kKiB}) {
      AddRatio(report, "same GPU, other process, 1 GiB in " + Size(chunk) + " chunks", kGiB,
               same.Import(Blocks(chunk), same.Scattered(Blocks(chunk), kGiB)), base, chunk == 64 * kKiB ? 0.9 : 0.0);
    }
  }
  test::ExporterProcess engine;
  const ExportedPool ipc = OpenPool(engine, owner, HandleKind::kCudaIpc);
  {
    Importer importer(importer_ordinal, ipc);
    const Geometry geometry = Blocks(64 * kKiB);
    AddRatio(report, "cuda_ipc: 1 GiB in 64 KiB chunks", kGiB, importer.Import(geometry, importer.Scattered(geometry, kGiB)),
             importer.Contiguous(kGiB), 0);
  }
  TopologyRows(report);
}

}  // namespace kvm::bench
