// Command line of bench.
#include <CLI/CLI.hpp>

#include "client/kvctl/bench/bench_command.h"
#include "client/kvctl/workload/option_choice.h"

namespace kvm::ctl {

void AddBenchCommands(CLI::App& app, const CommonOptions& common, Action& action) {
  CLI::App* bench = app.add_subcommand("bench", "Measures one part at a time, on a kvmd that is started for it");
  bench->require_subcommand(1);

  BenchCommand find(*bench, "find", "Lookups of chains of present keys", common, action, RunBenchFind);
  find.Entries().Lookups();
  find.command().add_flag("--while-publishing", find.options().while_publishing,
                          "Once more while another process publishes and retracts at full rate");

  BenchCommand publish(*bench, "publish", "Publishing in batches of 512, visibility in another process, retracting", common, action,
                       RunBenchPublish);
  publish.Entries().Rounds("Blocks published one by one for the visibility figure");

  BenchCommand import(*bench, "import", "Copying scattered blocks from a peer: between GPUs, else in host memory against memcpy", common,
                      action, RunBenchImport);
  import.Kvmd().Imports();
  import.command()
      .add_option("--block-bytes", import.options().block_bytes, "Size of a block, in host memory; on GPUs each row has its own")
      ->capture_default_str()
      ->check(CLI::Range(std::uint64_t{8}, std::uint64_t{1} << 30));
  AddBackendOptions(import.command(), import.options().backend, import.options().devices, kBenchDevices);

  BenchCommand keys(*bench, "keys", "Deriving the keys of a prompt; needs no kvmd", common, action, RunBenchKeys);
  keys.Rounds("Prompts");
  keys.command()
      .add_option("--tokens", keys.options().tokens, "Tokens of a prompt")
      ->capture_default_str()
      ->check(CLI::Range(1u, 1u << 26));
  keys.command()
      .add_option("--block-tokens", keys.options().block_tokens, "Tokens a block")
      ->capture_default_str()
      ->check(CLI::Range(1u, 1u << 20));

  BenchCommand memory(*bench, "memory", "Memory that kvmd needs for an entry", common, action, RunBenchMemory);
  memory.Entries();
}

}  // namespace kvm::ctl
