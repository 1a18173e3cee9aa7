// Command line of bench.
#include <CLI/CLI.hpp>

#include <memory>

#include "client/kvctl/bench/bench.h"
#include "client/kvctl/workload/option_choice.h"
#include "kvm/geometry.h"

namespace kvm::ctl {
namespace {

using Run = int (*)(const CommonOptions&, const BenchOptions&);
using OptionsPtr = std::shared_ptr<BenchOptions>;

class BenchCommand {
 public:
  BenchCommand(CLI::App& bench, const char* name, const char* help, const CommonOptions& common, Action& action, Run run)
      : options_(std::make_shared<BenchOptions>()), command_(bench.add_subcommand(name, help)) {
    command_->callback([&common, &action, run, options = options_] { action = [&common, run, options] { return run(common, *options); }; });
  }

  BenchOptions& options() noexcept { return *options_; }
  CLI::App& command() noexcept { return *command_; }

  BenchCommand& Entries() {
    command_->add_option("--entries", options_->entries, "Published blocks")
        ->capture_default_str()
        ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{Geometry::kMaxBlocks}));
    return Kvmd();
  }
  BenchCommand& Rounds(const char* help) {
    command_->add_option("--rounds", options_->rounds, help)->capture_default_str()->check(CLI::Range(1u, 10'000'000u));
    return *this;
  }
  BenchCommand& Kvmd() {
    CLI::Option* program =
        command_->add_option("--kvmd", options_->kvmd_program, "The kvmd to start; default: next to kvctl, else from PATH");
    command_
        ->add_flag(
            "--on-this-node", options_->on_this_node,
            "Measure on the kvmd of --socket instead, among its other clients, if it has room for the blocks; they are gone afterwards")
        ->excludes(program);
    return *this;
  }

 private:
  OptionsPtr options_;
  CLI::App* command_;
};

}  // namespace

void AddBenchCommands(CLI::App& app, const CommonOptions& common, Action& action) {
  CLI::App* bench = app.add_subcommand("bench", "Measures one part at a time, on a kvmd that is started for it");
  bench->require_subcommand(1);

  BenchCommand find(*bench, "find", "Lookups of chains of present keys", common, action, RunBenchFind);
  find.Entries().Rounds("Lookups, after warm-up");
  find.command().add_option("--keys", find.options().keys, "Keys a lookup")->capture_default_str()->check(CLI::Range(1u, 1u << 20));
  find.command().add_option("--against-redis", find.options().against_redis,
                            "Unix socket of a redis-server: the same keys by MGET, in the same run (they are removed afterwards)");
  find.command().add_flag("--while-publishing", find.options().while_publishing,
                          "Once more while another process publishes and retracts at full rate");
  find.command().add_flag("--shuffle", find.options().shuffle, "Keys from anywhere instead of one chain");

  BenchCommand publish(*bench, "publish", "Publishing in batches of 512, visibility in another process, retracting", common, action,
                       RunBenchPublish);
  publish.Entries().Rounds("Blocks published one by one for the visibility figure");

  BenchCommand import(*bench, "import", "Copying scattered blocks from a peer: on GPUs against CUDA's own copies, else against memcpy",
                      common, action, RunBenchImport);
  import.Kvmd().Rounds("Imports of 1 MiB");
  import.command()
      .add_option("--bytes", import.options().bytes, "Bytes of one large import; on GPUs a multiple of 64 MiB, and goals are for 1 GiB")
      ->capture_default_str();
  import.command()
      .add_option("--block-bytes", import.options().block_bytes, "Size of a block, in host memory; on GPUs each row has its own")
      ->capture_default_str()
      ->check(CLI::Range(std::uint64_t{8}, std::uint64_t{1} << 30));

  AddBackendOptions(import.command(), import.options().backend, import.options().devices,
                    "The exporter's GPU and the importer's: ordinals or UUIDs, separated by a comma; default: the first two");

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
