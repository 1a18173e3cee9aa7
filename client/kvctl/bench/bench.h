// kvctl bench: the figures of docs/BENCHMARKS.md, each measured through libkvclient against a real
// kvmd with peers in processes of their own. No benchmark passes or fails by time. It prints a
// figure only if it has checked that the measured lookups, publishes or copies took place, and
// after it has removed its blocks.
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/kvctl/cli/common_options.h"
#include "client/kvctl/cli/samples.h"
#include "client/kvctl/workload/pool_memory.h"

namespace kvm::ctl {

struct BenchOptions {
  std::uint64_t entries = 1'000'000;
  std::uint32_t keys = 512;  // a lookup
  std::uint32_t rounds = 2000;
  bool while_publishing = false;
  bool shuffle = false;  // keys of a lookup from anywhere instead of one chain
  std::uint64_t bytes = std::uint64_t{1} << 30;
  std::uint64_t block_bytes = 64 << 10;
  std::uint32_t verify_one_in = 0;  // of both sides' clients
  std::uint32_t tokens = 8192;
  std::uint32_t block_tokens = 16;
  BackendChoice backend = BackendChoice::kAuto;
  std::string devices;  // GPUs: the exporter's, then the importer's; empty: the first two
  std::string kvmd_program;
  bool on_this_node = false;  // measure on the kvmd of --socket, else on one that is started for it
};

enum class Unit { kMicroseconds, kNanoseconds, kCount, kPerSecond, kRatio, kPercent, kBytes, kGigabytesPerSecond, kBytesEach };
std::string HumanValue(double value, Unit unit);  // "12.5 µs"
std::string_view UnitName(Unit unit) noexcept;    // in JSON: "us", "ratio", …

// Named figures, in order.
class BenchReport {
 public:
  explicit BenchReport(std::string_view benchmark);
  // `name`: of the JSON member; `title`: for people.
  void Add(std::string_view name, std::string_view title, double value, Unit unit);
  // p50 and p99 as "<prefix>p50_us" and "<prefix>p99_us".
  void AddPercentiles(const std::string& prefix, const std::string& title, Samples& microseconds);
  void AddMemory(const PoolMemory& memory);
  void AddKvmd(const CommonOptions& common, const BenchOptions& options);
  // The member "rows", and the table that people see behind all figures.
  void AddRows(boost::json::array rows, std::string table);
  void Print(bool json) const;

 private:
  boost::json::object object_;
  std::vector<std::pair<std::string, std::string>> lines_;
  std::string table_;
};

// The end of every benchmark: prints the figures, or why there are none, or what the benchmark has
// left at the node's kvmd. Returns the exit code.
int FinishBench(const CommonOptions& common, const BenchOptions& options, const Result<BenchReport>& report);

int RunBenchFind(const CommonOptions& common, const BenchOptions& options);
int RunBenchPublish(const CommonOptions& common, const BenchOptions& options);
int RunBenchImport(const CommonOptions& common, const BenchOptions& options);
int RunBenchKeys(const CommonOptions& common, const BenchOptions& options);
int RunBenchMemory(const CommonOptions& common, const BenchOptions& options);

}  // namespace kvm::ctl
