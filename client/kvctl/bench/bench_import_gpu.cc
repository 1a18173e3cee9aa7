#include "client/kvctl/bench/bench_import_gpu.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "client/kvctl/bench/bench_host_cache.h"
#include "client/kvctl/bench/bench_setup.h"
#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

constexpr std::uint32_t kLargeRounds = 15, kMediumRounds = 51;

class GpuImportBench {
 public:
  GpuImportBench(const BenchOptions& options, const PoolMemory& memory, const BesideRow& beside)
      : options_(options), memory_(memory), beside_(beside) {}

  Result<std::vector<BenchRow>> Run(const CommonOptions& common) {
    if (Status set_up = SetUp(common); !set_up) return set_up.error();
    if (two()) {
      using Step = Status (GpuImportBench::*)();
      for (const Step step : {&GpuImportBench::ScatteredRows, &GpuImportBench::SmallerRows, &GpuImportBench::LatencyRows}) {
        if (Status done = (this->*step)(); !done) return done.error();
      }
    }
    if (Status done = SameGpuRow(); !done) return done.error();
    if (Status right = CheckAll(); !right) return right.error();
    if (options_.on_this_node) return std::move(rows_);
    if (Status done = HostCache(common); !done) return done.error();
    return std::move(rows_);
  }

 private:
  using Target = ImportRun::Target;
  using Timing = ImportRun::Timing;

  bool two() const noexcept { return memory_.devices.size() > 1; }
  const DeviceUuid& owner() const noexcept { return memory_.devices.front().uuid; }
  const DeviceUuid& importer() const noexcept { return memory_.devices.at(1).uuid; }
  Status SetUp(const CommonOptions& common) {
    std::vector<DeviceUuid> devices{owner()};
    if (two()) devices.insert(devices.begin(), importer());
    const std::uint64_t entries = options_.bytes / (64 * kKiB) + 2 * options_.bytes / kMiB + 1024;
    Result<std::unique_ptr<ImportRun>> run = ImportRun::Start(common, options_, entries, std::move(devices));
    if (!run) return run.error();
    run_ = std::move(*run);
    if (Status held = Hold(chunks_64k_, kMiB, 64 * kKiB); !held) return held;
    if (two()) {
      if (Status held = Hold(chunks_16k_, kMiB, 16 * kKiB); !held) return held;
      if (Status held = Hold(blocks_64k_, 64 * kKiB, 64 * kKiB); !held) return held;
    }
    if (Status connected = run_->Connect(); !connected) return connected;
    if (Status allocated = Allocate(owner(), chunks_64k_, same_gpu_); !allocated) return allocated;
    if (!two()) return {};
    if (Status allocated = Allocate(importer(), chunks_64k_, to_chunks_64k_); !allocated) return allocated;
    if (Status allocated = Allocate(importer(), chunks_16k_, to_chunks_16k_); !allocated) return allocated;
    return Allocate(importer(), blocks_64k_, to_blocks_64k_);
  }

  Status Hold(SourceBlocks& source, std::uint64_t block_bytes, std::uint64_t chunk_bytes) {
    Result<SourceBlocks> held = run_->Hold(owner(), options_.bytes, block_bytes, chunk_bytes);
    if (!held) return held.error();
    source = std::move(*held);
    return {};
  }

  Status Allocate(const DeviceUuid& device, const SourceBlocks& source, Target& target) {
    Result<Target> allocated = run_->Allocate(device, source);
    if (!allocated) return allocated.error();
    target = std::move(*allocated);
    return {};
  }

  Status Measure(const SourceBlocks& source, const Target& target, std::string name, std::string title, std::uint64_t bytes,
                 unsigned max_sms = 0) {
    const DeviceUuid& reader = &target == &same_gpu_ ? owner() : importer();
    const CopiedRow what{std::move(name), std::move(title), reader, owner(), bytes, bytes == options_.bytes ? kLargeRounds : kMediumRounds};
    Result<BenchRow> row = run_->Measure(source, target, what, max_sms, beside_);
    if (!row) return row.error();
    rows_.push_back(std::move(*row));
    return {};
  }

  Status ScatteredRows() {
    const std::string size = HumanBytes(options_.bytes);
    for (const auto& [source, target] : {std::pair{&chunks_64k_, &to_chunks_64k_}, {&chunks_16k_, &to_chunks_16k_}}) {
      for (const unsigned sms : {0u, 32u, 16u}) {
        const std::string chunk = std::to_string(source->chunk_bytes / kKiB);
        const std::string bound = sms == 0 ? "" : "_" + std::to_string(sms) + "_sms";
        const std::string title =
            size + " in scattered " + chunk + " KiB chunks" + (sms == 0 ? "" : ", at most " + std::to_string(sms) + " SMs");
        if (Status done = Measure(*source, *target, "scattered_" + chunk + "k" + bound, title, options_.bytes, sms); !done) return done;
      }
    }
    return Measure(blocks_64k_, to_blocks_64k_, "blocks_64k", size + " in scattered blocks of 64 KiB", options_.bytes);
  }

  Status SmallerRows() {
    for (const std::uint64_t part : {8, 64}) {
      const std::uint64_t bytes = options_.bytes / part;
      const std::string name = "scattered_64k_1_" + std::to_string(part), title = HumanBytes(bytes) + " in scattered 64 KiB chunks";
      if (Status done = Measure(chunks_64k_, to_chunks_64k_, name, title, bytes); !done) return done;
    }
    return {};
  }

  Status LatencyRows() {
    const auto row = [&](const char* name, const char* title, const SourceBlocks& source, const Target& target) -> Status {
      Result<Timing> timing = run_->Import(source, target, kMiB, 0, options_.rounds, true);
      if (!timing) return timing.error();
      BenchRow measured;
      measured.name = name;
      measured.title = title;
      measured.unit = Unit::kMicroseconds;
      measured.value = 1e6 * timing->whole_s.p50();
      measured.bytes_per_s = static_cast<double>(kMiB) / timing->whole_s.p50();
      measured.note =
          "p99 " + HumanNanoseconds(1e9 * timing->whole_s.p99()) + ", find alone " + HumanNanoseconds(1e9 * timing->find_s.p50());
      rows_.push_back(std::move(measured));
      return {};
    };
    if (Status done = row("whole_1mib", "find to validated, 1 MiB in one block of 64 KiB chunks", chunks_64k_, to_chunks_64k_); !done)
      return done;
    return row("whole_1mib_16_blocks", "find to validated, 1 MiB in 16 blocks", blocks_64k_, to_blocks_64k_);
  }

  Status SameGpuRow() {
    return Measure(chunks_64k_, same_gpu_, "same_gpu_64k",
                   "same GPU, other process: " + HumanBytes(options_.bytes) + " in scattered 64 KiB chunks", options_.bytes);
  }

  // From a kvmd of its own, which keeps the blocks of a process that has ended.
  Status HostCache(const CommonOptions& common) {
    std::vector<DeviceUuid> devices{owner()};
    if (two()) devices.push_back(importer());
    Result<std::vector<BenchRow>> rows = HostCacheRows(common, options_, devices, beside_);
    if (!rows) return rows.error();
    std::move(rows->begin(), rows->end(), std::back_inserter(rows_));
    return {};
  }

  // What is timed has to be right, too.
  Status CheckAll() {
    if (Status right = run_->Check(chunks_64k_, same_gpu_); !right || !two()) return right;
    if (Status right = run_->Check(chunks_64k_, to_chunks_64k_); !right) return right;
    if (Status right = run_->Check(chunks_16k_, to_chunks_16k_); !right) return right;
    return run_->Check(blocks_64k_, to_blocks_64k_);
  }

  const BenchOptions& options_;
  const PoolMemory& memory_;
  const BesideRow& beside_;
  std::unique_ptr<ImportRun> run_;
  SourceBlocks chunks_64k_, chunks_16k_, blocks_64k_;
  Target to_chunks_64k_, to_chunks_16k_, to_blocks_64k_;  // on the importer's GPU
  Target same_gpu_;                                       // for chunks_64k_, on the owner's
  std::vector<BenchRow> rows_;
};

}  // namespace

Result<std::vector<BenchRow>> MeasureGpuImports(const CommonOptions& common, const BenchOptions& options, const PoolMemory& memory,
                                                const BesideRow& beside) {
  if (options.bytes == 0 || options.bytes % kGpuBytesStep != 0 || options.bytes / (64 * kKiB) > Geometry::kMaxBlocks) {
    return MakeError(Errc::kInvalidArgument, "--bytes has to be a multiple of " + HumanBytes(kGpuBytesStep) + " with --backend cuda");
  }
  return GpuImportBench(options, memory, beside).Run(common);
}

BenchReport GpuImportReport(const CommonOptions& common, const BenchOptions& options, const PoolMemory& memory) {
  BenchReport report("import");
  report.AddKvmd(common, options);
  report.AddMemory(memory);
  report.Add("bytes", "bytes", static_cast<double>(options.bytes), Unit::kBytes);
  return report;
}

PoolMemory FirstTwo(PoolMemory memory) {
  if (memory.devices.size() > 2) memory.devices.resize(2);
  return memory;
}

}  // namespace kvm::ctl
