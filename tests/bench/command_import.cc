#include <CLI/CLI.hpp>

#include <algorithm>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client/kvctl/bench/bench_command.h"
#include "client/kvctl/bench/bench_import_gpu.h"
#include "client/kvctl/cli/samples.h"
#include "client/kvctl/cli/text.h"
#include "tests/bench/commands.h"
#include "tests/bench/compared_rows.h"
#include "tests/bench/copy_baselines.h"

namespace kvm::bench {
namespace {

using ctl::BenchOptions;
using ctl::BenchReport;
using ctl::BenchRow;
using ctl::CopiedRow;
using ctl::Samples;
using ctl::Unit;

// Of an import: goals are for this many
constexpr std::uint64_t kGoalBytes = std::uint64_t{1} << 30;
constexpr std::uint32_t kChunkCallRounds = 3;
// What CUDA's calls for chunks are compared with
constexpr const char* kChunkedRow = "scattered_64k";

struct Goal {
  double value;
  bool at_most;
};
const std::map<std::string, Goal> kGoals{
    {"scattered_64k", {0.92, false}},
    {"scattered_64k_32_sms", {0.92, false}},
    {"scattered_64k_16_sms", {0.85, false}},
    {"scattered_16k", {0.92, false}},
    {"scattered_16k_32_sms", {0.92, false}},
    {"scattered_16k_16_sms", {0.85, false}},
    {"scattered_64k_1_8", {0.90, false}},
    {"scattered_64k_1_64", {0.85, false}},
    {"against_batch", {5, false}},
    {"against_each", {17, false}},
    {"whole_1mib", {40, true}},
    {"whole_1mib_16_blocks", {40, true}},
    {"same_gpu_64k", {0.9, false}},
    {"host_cache_64k", {0.9, false}},
    {"host_cache_blocks_64k", {0.9, false}},
};

Status AddTimes(const CopyBaseline& baseline, Samples& times) {
  const Result<std::vector<double>> seconds = MeasureCopy(baseline);
  if (!seconds) return seconds.error();
  for (const double second : *seconds) times.Add(second);
  return {};
}

class ImportComparison {
 public:
  ImportComparison(const ctl::CommonOptions& common, const BenchOptions& options, ctl::PoolMemory memory)
      : common_(common), options_(options), memory_(std::move(memory)) {}

  Result<BenchReport> Run() {
    const Result<std::vector<BenchRow>> rows =
        ctl::MeasureGpuImports(common_, options_, memory_, [this](const CopiedRow& row) { return Contiguous(row); });
    if (!rows) return rows.error();
    for (const BenchRow& row : *rows) Compare(row);
    if (memory_.devices.size() > 1) {
      if (Status done = LibraryRows(*rows); !done) return done.error();
    }
    BenchReport report = ctl::GpuImportReport(common_, options_, memory_);
    report.AddRows(RowsJson(compared_), RowsText(compared_));
    return report;
  }

 private:
  // Half of a row's rounds before its imports, half of them after.
  Status Contiguous(const CopiedRow& row) {
    CopyBaseline baseline;
    baseline.importer = row.importer;
    baseline.owner = row.owner;
    baseline.bytes = row.bytes;
    baseline.rounds = row.rounds / 2 + 1;
    Contrast& contrast = contiguous_[row.name];
    contrast.bytes = row.bytes;
    contrast.from_host = row.owner == kHostMemory;
    return AddTimes(baseline, contrast.seconds);
  }

  void Compare(const BenchRow& row) {
    ComparedRow compared{row, 0, std::nullopt, false};
    if (const auto found = contiguous_.find(row.name); found != contiguous_.end()) {
      Contrast& contrast = found->second;
      compared.baseline_bytes_per_s = static_cast<double>(contrast.bytes) / contrast.seconds.p50();
      compared.row.unit = Unit::kRatio;
      compared.row.value = row.bytes_per_s / compared.baseline_bytes_per_s;
      compared.row.note = (contrast.from_host ? "of a contiguous copy from pinned memory; " : "of contiguous; ") + row.note;
    }
    Add(std::move(compared));
  }

  // Against what CUDA offers for scattered copies: the same chunks, without keys and validation.
  Status LibraryRows(const std::vector<BenchRow>& rows) {
    const auto ours = std::find_if(rows.begin(), rows.end(), [](const BenchRow& row) { return row.name == kChunkedRow; });
    if (ours == rows.end()) return MakeError(Errc::kSystem, std::string("bench import measured no row ") + kChunkedRow);
    struct Call {
      BaselineCall call;
      const char *name, *title;
    };
    for (const Call& call : {Call{BaselineCall::kBatch, "against_batch", "against cudaMemcpyBatchAsync"},
                             Call{BaselineCall::kEachChunk, "against_each", "against one cudaMemcpyAsync a chunk"}}) {
      CopyBaseline baseline;
      baseline.call = call.call;
      baseline.importer = memory_.devices.at(1).uuid;
      baseline.owner = memory_.devices.front().uuid;
      baseline.bytes = options_.bytes;
      baseline.rounds = kChunkCallRounds;
      Samples seconds;
      const Status measured = AddTimes(baseline, seconds);
      if (!measured && measured.error().code == Errc::kUnsupported) {
        std::cerr << "kvm_bench: no row " << call.name << ": " << measured.error().message << std::endl;
        continue;
      }
      if (!measured) return measured;
      ComparedRow compared{*ours, static_cast<double>(options_.bytes) / seconds.p50(), std::nullopt, false};
      compared.row.name = call.name;
      compared.row.title = ctl::HumanBytes(options_.bytes) + " in 64 KiB chunks, " + call.title;
      compared.row.unit = Unit::kRatio;
      compared.row.value = ours->bytes_per_s / compared.baseline_bytes_per_s;
      compared.row.note.clear();
      Add(std::move(compared));
    }
    return {};
  }

  void Add(ComparedRow compared) {
    const auto goal = kGoals.find(compared.row.name);
    // Times are of 1 MiB, whatever --bytes says.
    if (goal != kGoals.end() && (options_.bytes == kGoalBytes || compared.row.unit == Unit::kMicroseconds)) {
      compared.goal = goal->second.value;
      compared.at_most = goal->second.at_most;
    }
    compared_.push_back(std::move(compared));
  }

  struct Contrast {
    std::uint64_t bytes = 0;
    bool from_host = false;
    Samples seconds;
  };

  const ctl::CommonOptions& common_;
  const BenchOptions& options_;
  const ctl::PoolMemory memory_;
  std::map<std::string, Contrast> contiguous_;  // by the name of a row
  std::vector<ComparedRow> compared_;
};

int RunImport(const ctl::CommonOptions& common, const BenchOptions& options) {
  Result<ctl::PoolMemory> memory = ctl::ChoosePoolMemory(ctl::BackendChoice::kCuda, options.devices);
  if (!memory) return ctl::Fail(memory.error());
  return ctl::FinishBench(common, options, ImportComparison(common, options, ctl::FirstTwo(std::move(*memory))).Run());
}

}  // namespace

void AddImportCommand(CLI::App& app, const ctl::CommonOptions& common, ctl::Action& action) {
  ctl::BenchCommand import(app, "import", "Imports between GPUs, next to CUDA's own copies; goals are for 1 GiB", common, action,
                           RunImport);
  import.Kvmd().Imports();
  import.command().add_option("--devices", import.options().devices, ctl::kBenchDevices);
}

}  // namespace kvm::bench
