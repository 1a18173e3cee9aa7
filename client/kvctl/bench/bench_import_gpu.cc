#include "client/kvctl/bench/bench_import_gpu.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "client/kvctl/bench/bench_host_cache.h"
#include "client/kvctl/bench/bench_rows.h"
#include "client/kvctl/bench/import_run.h"
#include "client/kvctl/cli/text.h"
#include "kvm/copy_baselines.h"

namespace kvm::ctl {
namespace {

constexpr std::uint64_t kKiB = 1 << 10, kMiB = 1 << 20;
constexpr std::uint32_t kLargeRounds = 15, kMediumRounds = 51, kChunkCallRounds = 3;
constexpr const char* kNeedsTwo = "needs two GPUs";

class GpuImportBench {
 public:
  GpuImportBench(const BenchOptions& options, const PoolMemory& memory) : options_(options), memory_(memory) {}

  Result<BenchReport> Run(const CommonOptions& common) {
    if (Status set_up = SetUp(common); !set_up) return set_up.error();
    using Step = Status (GpuImportBench::*)();
    for (const Step step : {&GpuImportBench::ScatteredRows, &GpuImportBench::SmallerRows, &GpuImportBench::LibraryRows,
                            &GpuImportBench::LatencyRows, &GpuImportBench::SameGpuRow, &GpuImportBench::CheckAll}) {
      if (Status done = (this->*step)(); !done) return done.error();
    }
    if (Status done = HostCache(common); !done) return done.error();
    BenchReport report("import");
    report.AddKvmd(common, options_);
    report.AddMemory(memory_);
    report.Add("bytes", "bytes", static_cast<double>(options_.bytes), Unit::kBytes);
    report.AddRows(std::move(rows_));
    return report;
  }

 private:
  using Target = ImportRun::Target;
  using Timing = ImportRun::Timing;

  bool two() const noexcept { return memory_.devices.size() > 1; }
  const DeviceUuid& owner() const noexcept { return memory_.devices.front().uuid; }
  const DeviceUuid& importer() const noexcept { return memory_.devices.at(1).uuid; }
  // A goal is one for imports of kGoalBytes.
  std::optional<double> Goal(double goal) const noexcept {
    return options_.bytes == kGoalBytes ? std::optional<double>(goal) : std::nullopt;
  }

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

  void Unmeasured(std::string name, std::string title, Unit unit, std::optional<double> goal, bool at_most, const char* why) {
    BenchRow row;
    row.name = std::move(name);
    row.title = std::move(title);
    row.unit = unit;
    row.goal = goal;
    row.at_most = at_most;
    row.note = why;
    rows_.push_back(std::move(row));
  }

  struct ImportRow {
    std::string name, title;
    const SourceBlocks& source;
    const Target& target;
    DeviceUuid importer;
    std::uint64_t bytes;
    unsigned max_sms;
    std::optional<double> goal;
  };

  Status Compare(const ImportRow& what) {
    const std::uint32_t rounds = what.bytes == options_.bytes ? kLargeRounds : kMediumRounds;
    Result<BenchRow> row = run_->Compare(what.source, what.target, what.importer, owner(), what.bytes, what.max_sms, rounds);
    if (!row) return row.error();
    row->name = what.name;
    row->title = what.title;
    row->goal = what.goal;
    rows_.push_back(std::move(*row));
    return {};
  }

  Status ScatteredRows() {
    const std::string size = HumanBytes(options_.bytes);
    const auto row = [&](const SourceBlocks& source, const Target& target, unsigned sms, double goal) -> Status {
      const std::string chunk = std::to_string(source.chunk_bytes / kKiB);
      const std::string bound = sms == 0 ? "" : "_" + std::to_string(sms) + "_sms";
      return Compare({"scattered_" + chunk + "k" + bound,
                      size + " in scattered " + chunk + " KiB chunks" + (sms == 0 ? "" : ", at most " + std::to_string(sms) + " SMs"),
                      source, target, importer(), options_.bytes, sms, Goal(goal)});
    };
    if (!two()) {
      Unmeasured("scattered_64k", size + " in scattered 64 KiB chunks", Unit::kRatio, Goal(0.92), false, kNeedsTwo);
      Unmeasured("scattered_16k", size + " in scattered 16 KiB chunks", Unit::kRatio, Goal(0.92), false, kNeedsTwo);
      return {};
    }
    for (const auto& [sms, goal] : {std::pair{0u, 0.92}, {32u, 0.92}, {16u, 0.85}}) {
      if (Status done = row(chunks_64k_, to_chunks_64k_, sms, goal); !done) return done;
    }
    for (const auto& [sms, goal] : {std::pair{0u, 0.92}, {32u, 0.92}, {16u, 0.85}}) {
      if (Status done = row(chunks_16k_, to_chunks_16k_, sms, goal); !done) return done;
    }
    return Compare(
        {"blocks_64k", size + " in scattered blocks of 64 KiB", blocks_64k_, to_blocks_64k_, importer(), options_.bytes, 0, std::nullopt});
  }

  Status SmallerRows() {
    for (const auto& [part, goal] : {std::pair<std::uint64_t, double>{8, 0.90}, {64, 0.85}}) {
      const std::uint64_t bytes = options_.bytes / part;
      const std::string name = "scattered_64k_1_" + std::to_string(part), title = HumanBytes(bytes) + " in scattered 64 KiB chunks";
      if (!two()) {
        Unmeasured(name, title, Unit::kRatio, Goal(goal), false, kNeedsTwo);
        continue;
      }
      if (Status done = Compare({name, title, chunks_64k_, to_chunks_64k_, importer(), bytes, 0, Goal(goal)}); !done) return done;
    }
    return {};
  }

  // Against what CUDA offers for scattered copies: the same chunks, without keys and validation.
  Status LibraryRows() {
    struct Call {
      BaselineCall call;
      const char *name, *title;
      double goal;
    };
    for (const Call& call : {Call{BaselineCall::kBatch, "against_batch", "against cudaMemcpyBatchAsync", 5},
                             Call{BaselineCall::kEachChunk, "against_each", "against one cudaMemcpyAsync a chunk", 17}}) {
      const std::string title = HumanBytes(options_.bytes) + " in 64 KiB chunks, " + call.title;
      if (!two()) {
        Unmeasured(call.name, title, Unit::kRatio, Goal(call.goal), false, kNeedsTwo);
        continue;
      }
      if (Status done = CompareWithCall(call.call, call.name, title, call.goal); !done) return done;
    }
    return {};
  }

  Status CompareWithCall(BaselineCall call, const char* name, const std::string& title, double goal) {
    Result<Timing> timing = run_->Import(chunks_64k_, to_chunks_64k_, options_.bytes, 0, kLargeRounds);
    if (!timing) return timing.error();
    CopyBaseline baseline;
    baseline.call = call;
    baseline.importer = importer();
    baseline.owner = owner();
    baseline.bytes = options_.bytes;
    baseline.rounds = kChunkCallRounds;
    const Result<std::vector<double>> seconds = MeasureCopy(baseline);
    if (!seconds && seconds.error().code == Errc::kUnsupported) {
      Unmeasured(name, title, Unit::kRatio, Goal(goal), false, seconds.error().message.c_str());
      return {};
    }
    if (!seconds) return seconds.error();
    Samples theirs;
    for (const double second : *seconds) theirs.Add(second);
    const auto bytes = static_cast<double>(options_.bytes);
    BenchRow row;
    row.name = name;
    row.title = title;
    row.value = theirs.p50() / timing->import_s.p50();
    row.bytes_per_s = bytes / timing->import_s.p50();
    row.baseline_bytes_per_s = bytes / theirs.p50();
    row.goal = Goal(goal);
    rows_.push_back(std::move(row));
    return {};
  }

  Status LatencyRows() {
    const auto row = [&](const char* name, const char* title, const SourceBlocks& source, const Target& target) -> Status {
      if (!two()) {
        Unmeasured(name, title, Unit::kMicroseconds, 40, true, kNeedsTwo);
        return {};
      }
      Result<Timing> timing = run_->Import(source, target, kMiB, 0, options_.rounds, true);
      if (!timing) return timing.error();
      BenchRow measured;
      measured.name = name;
      measured.title = title;
      measured.unit = Unit::kMicroseconds;
      measured.value = 1e6 * timing->whole_s.p50();
      measured.bytes_per_s = static_cast<double>(kMiB) / timing->whole_s.p50();
      measured.goal = 40;
      measured.at_most = true;
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
    return Compare({"same_gpu_64k", "same GPU, other process: " + HumanBytes(options_.bytes) + " in scattered 64 KiB chunks", chunks_64k_,
                    same_gpu_, owner(), options_.bytes, 0, Goal(0.9)});
  }

  // From a kvmd of its own, which keeps the blocks of a process that has ended.
  Status HostCache(const CommonOptions& common) {
    std::vector<DeviceUuid> devices{owner()};
    if (two()) devices.push_back(importer());
    Result<std::vector<BenchRow>> rows = HostCacheRows(common, options_, devices);
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
  std::unique_ptr<ImportRun> run_;
  SourceBlocks chunks_64k_, chunks_16k_, blocks_64k_;
  Target to_chunks_64k_, to_chunks_16k_, to_blocks_64k_;  // on the importer's GPU
  Target same_gpu_;                                       // for chunks_64k_, on the owner's
  std::vector<BenchRow> rows_;
};

}  // namespace

Result<BenchReport> BenchGpuImport(const CommonOptions& common, const BenchOptions& options, const PoolMemory& memory) {
  if (options.bytes == 0 || options.bytes % kGpuBytesStep != 0 || options.bytes / (64 * kKiB) > Geometry::kMaxBlocks) {
    return MakeError(Errc::kInvalidArgument, "--bytes has to be a multiple of " + HumanBytes(kGpuBytesStep) + " with --backend cuda");
  }
  PoolMemory pair = memory;
  if (pair.devices.size() > 2) pair.devices.resize(2);
  return GpuImportBench(options, pair).Run(common);
}

}  // namespace kvm::ctl
