#include <cmath>
#include <iostream>

#include "client/kvctl/bench/bench.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/machine.h"
#include "client/kvctl/cli/text.h"

namespace kvm::ctl {

std::string HumanValue(double value, Unit unit) {
  const auto whole = static_cast<std::uint64_t>(std::max(0.0, std::round(value)));
  switch (unit) {
    case Unit::kMicroseconds: return HumanNanoseconds(1e3 * value);
    case Unit::kNanoseconds: return HumanNanoseconds(value);
    case Unit::kCount: return HumanCount(whole);
    case Unit::kPerSecond: return HumanCount(whole) + " /s";
    case Unit::kRatio: return FormatFixed(value, 2) + " x";
    case Unit::kPercent: return FormatFixed(value, 1) + " %";
    case Unit::kBytes: return HumanBytes(whole);
    case Unit::kGigabytesPerSecond: return FormatFixed(value, 2) + " GB/s";
    case Unit::kBytesEach: return FormatFixed(value, 1) + " B";
  }
  return FormatFixed(value, 3);
}

std::string_view UnitName(Unit unit) noexcept {
  switch (unit) {
    case Unit::kMicroseconds: return "us";
    case Unit::kNanoseconds: return "ns";
    case Unit::kCount: return "count";
    case Unit::kPerSecond: return "per_s";
    case Unit::kRatio: return "ratio";
    case Unit::kPercent: return "percent";
    case Unit::kBytes: return "bytes";
    case Unit::kGigabytesPerSecond: return "gb_per_s";
    case Unit::kBytesEach: return "bytes_each";
  }
  return "unknown";
}

BenchReport::BenchReport(std::string_view benchmark) {
  const MachineFacts facts = ReadMachineFacts();
  object_["benchmark"] = std::string(benchmark);
  object_["version"] = KVM_VERSION;
  object_["machine"] =
      boost::json::object{{"cpu", facts.cpu}, {"cores", facts.cores}, {"kernel", facts.kernel}, {"memory_bytes", facts.memory_bytes}};
  lines_.emplace_back("benchmark", std::string(benchmark) + ", kvctl " KVM_VERSION);
  lines_.emplace_back("machine",
                      facts.cpu + ", " + std::to_string(facts.cores) + " cores, " + HumanBytes(facts.memory_bytes) + ", " + facts.kernel);
}

void BenchReport::Add(std::string_view name, std::string_view title, double value, Unit unit) {
  if (unit == Unit::kCount || unit == Unit::kBytes) {
    object_[name] = static_cast<std::uint64_t>(std::max(0.0, std::round(value)));
  } else {
    object_[name] = value;
  }
  lines_.emplace_back(std::string(title), HumanValue(value, unit));
}

void BenchReport::AddPercentiles(const std::string& prefix, const std::string& title, Samples& microseconds) {
  Add(prefix + "p50_us", title + " p50", microseconds.p50(), Unit::kMicroseconds);
  Add(prefix + "p99_us", title + " p99", microseconds.p99(), Unit::kMicroseconds);
}

void BenchReport::AddMemory(const PoolMemory& memory) {
  object_["backend"] = memory.backend();
  object_["devices"] = DevicesJson(memory.devices);
  lines_.emplace_back("backend", memory.Describe());
}

void BenchReport::AddKvmd(const CommonOptions& common, const BenchOptions& options) {
  object_["kvmd"] = options.on_this_node ? Printable(common.socket) : "private";
  lines_.emplace_back("kvmd", options.on_this_node ? "this node's, " + Printable(common.socket) : "started for this");
}

void BenchReport::AddRows(boost::json::array rows, std::string table) {
  object_["rows"] = std::move(rows);
  table_ = std::move(table);
}

void BenchReport::Print(bool json) const {
  if (json) {
    PrintJson(object_);
    return;
  }
  FieldList fields;
  for (const auto& [title, value] : lines_) fields.Add(title, value);
  fields.Print(std::cout);
  if (!table_.empty()) std::cout << '\n' << table_;
}

}  // namespace kvm::ctl
