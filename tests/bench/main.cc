// kvm_bench [--benchmark_…]: the micro-benchmarks. kvm_bench COMMAND …: one of commands.h.
#include <benchmark/benchmark.h>
#include <CLI/CLI.hpp>

#include <iostream>
#include <optional>
#include <string_view>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/internal_roles.h"
#include "tests/bench/commands.h"

namespace {

int RunMicroBenchmarks(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return kvm::ctl::kUsage;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

int RunCommand(int argc, char** argv) {
  CLI::App app("Benchmarks of kvmd next to something else. Without a command: Google Benchmark's, see --help there.", "kvm_bench");
  app.require_subcommand(1);
  app.fallthrough();
  kvm::ctl::CommonOptions common;
  kvm::ctl::AddCommonOptions(app, common);
  kvm::ctl::Action action;
  kvm::bench::AddHeldCommand(app, common, action);
  kvm::bench::AddMeshCommand(app, common, action);
  kvm::bench::AddMeshDelaysCommand(app, common, action);
#ifdef KVM_HAVE_MESH
  kvm::bench::AddDirectoryCommand(app, action);
  kvm::bench::AddDiskCommand(app, action);
#endif
#ifdef KVM_HAVE_ZMQ
  kvm::bench::AddEventsCommand(app, action);
#endif
#ifdef KVM_HAVE_HIREDIS
  kvm::bench::AddFindCommand(app, common, action);
#endif
#ifdef KVM_HAVE_CUDA
  kvm::bench::AddImportCommand(app, common, action);
#endif
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kvm::ctl::kHealthy : kvm::ctl::kUsage;
  }
  return action();
}

}  // namespace

int main(int argc, char** argv) {
  if (const std::optional<int> done = kvm::ctl::RunInternalRole(argc, argv)) return *done;
  const bool command = argc > 1 && !std::string_view(argv[1]).starts_with("--benchmark");
  return command ? RunCommand(argc, argv) : RunMicroBenchmarks(argc, argv);
}
