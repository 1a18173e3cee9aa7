// bench_import: what importing over CUDA costs, all rows of the table in one run.
//
//   bench_import [--owner GPU] [--importer GPU] [--out DIR] [--tune | --tune-quick | --fixed-costs]
//
// Prints a table; with --out also writes DIR/import.json. Exit codes: 0 measured (whether or not a
// row reaches its figure), 1 error, 77 fewer GPUs than named.
#include <sys/stat.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <optional>

#include "tests/gpu/bench_setup.h"

namespace kvm::bench {
namespace {

const char* Verdict(const Row& row) {
  if (row.reach == 0.0) return "";
  return (row.at_most ? row.value <= row.reach : row.value >= row.reach) ? "reached" : "MISSED";
}

std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out + '"';
}

}  // namespace

void Report::Add(Row row) {
  std::printf("%-68s %10.3f %-9s %s\n", row.what.c_str(), row.value, row.unit.c_str(), row.note.c_str());
  std::fflush(stdout);
  rows_.push_back(std::move(row));
}

void Report::Print() const {
  std::printf("\n%-68s %10s %-9s %8s  %-8s %s\n", "what", "measured", "", "reach", "", "");
  for (const Row& row : rows_) {
    char reach[16] = "";
    if (row.reach != 0.0) std::snprintf(reach, sizeof(reach), "%s%g", row.at_most ? "<=" : ">=", row.reach);
    std::printf("%-68s %10.3f %-9s %8s  %-8s %s\n", row.what.c_str(), row.value, row.unit.c_str(), reach, Verdict(row), row.note.c_str());
  }
}

std::string Report::Json(const std::string& machine) const {
  std::string out = "{\"machine\": " + Quoted(machine) + ", \"rows\": [\n";
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    out += "  {\"what\": " + Quoted(row.what) + ", \"value\": " + std::to_string(row.value) + ", \"unit\": " + Quoted(row.unit) +
           ", \"reach\": " + (row.reach == 0.0 ? "null" : std::to_string(row.reach)) + ", \"verdict\": " + Quoted(Verdict(row)) +
           ", \"note\": " + Quoted(row.note) + "}" + (i + 1 < rows_.size() ? ",\n" : "\n");
  }
  return out + "]}\n";
}

}  // namespace kvm::bench

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 3 && arguments[0] == "--child") return kvm::test::RunExporter(std::stoi(arguments[2]));
  int owner = 0, importer = 1;
  std::string out;
  std::optional<kvm::bench::TuneDepth> tune;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const bool more = i + 1 < arguments.size();
    if (arguments[i] == "--owner" && more) {
      owner = std::stoi(arguments[++i]);
    } else if (arguments[i] == "--importer" && more) {
      importer = std::stoi(arguments[++i]);
    } else if (arguments[i] == "--out" && more) {
      out = arguments[++i];
    } else if (arguments[i] == "--tune") {
      tune = kvm::bench::TuneDepth::kFull;
    } else if (arguments[i] == "--tune-quick") {
      tune = kvm::bench::TuneDepth::kQuick;
    } else if (arguments[i] == "--fixed-costs") {
      tune = kvm::bench::TuneDepth::kFixedCosts;
    } else {
      std::cerr << "bench_import: unknown or incomplete option " << arguments[i] << std::endl;
      return 1;
    }
  }
  std::string why;
  const int gpus = kvm::test::UsableGpus(why);
  if (gpus <= std::max(owner, importer)) {
    std::cout << "SKIPPED: needs GPUs " << owner << " and " << importer << ", there are " << gpus << " " << why << std::endl;
    return 77;
  }
  if (tune) {
    kvm::bench::RunTune(owner, importer, *tune);
    return 0;
  }
  kvm::bench::Report report;
  kvm::bench::RunRows(report, owner, importer);
  report.Print();
  if (!out.empty()) {
    const auto devices = kvm::bench::Must(kvm::ListDevices());
    std::ofstream(out + "/import.json") << report.Json(std::to_string(gpus) + " x " + devices.front().name);
  }
  return 0;
}
