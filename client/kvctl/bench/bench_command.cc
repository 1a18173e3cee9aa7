#include "client/kvctl/bench/bench_command.h"

#include <CLI/CLI.hpp>

#include <utility>

#include "kvm/geometry.h"

namespace kvm::ctl {

BenchCommand::BenchCommand(CLI::App& parent, const char* name, const char* help, const CommonOptions& common, Action& action, Run run)
    : options_(std::make_shared<BenchOptions>()), command_(parent.add_subcommand(name, help)) {
  command_->callback(
      [&common, &action, run = std::move(run), options = options_] { action = [&common, run, options] { return run(common, *options); }; });
}

BenchCommand& BenchCommand::Entries() {
  command_->add_option("--entries", options_->entries, "Published blocks")
      ->capture_default_str()
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{Geometry::kMaxBlocks}));
  return Kvmd();
}

BenchCommand& BenchCommand::Rounds(const char* help) {
  command_->add_option("--rounds", options_->rounds, help)->capture_default_str()->check(CLI::Range(1u, 10'000'000u));
  return *this;
}

BenchCommand& BenchCommand::Lookups() {
  command_->add_option("--keys", options_->keys, "Keys a lookup")->capture_default_str()->check(CLI::Range(1u, 1u << 20));
  command_->add_flag("--shuffle", options_->shuffle, "Keys from anywhere instead of one chain");
  return Rounds("Lookups, after warm-up");
}

BenchCommand& BenchCommand::Imports() {
  command_->add_option("--bytes", options_->bytes, "Bytes of one large import; on GPUs a multiple of 64 MiB")->capture_default_str();
  command_
      ->add_option("--verify-one-in", options_->verify_one_in, "Compare one in so many blocks with a checksum of its publisher; 0: none")
      ->capture_default_str();
  return Rounds("Imports of 1 MiB");
}

BenchCommand& BenchCommand::Kvmd() {
  CLI::Option* program =
      command_->add_option("--kvmd", options_->kvmd_program, "The kvmd to start; default: next to this program, else from PATH");
  command_
      ->add_flag(
          "--on-this-node", options_->on_this_node,
          "Measure on the kvmd of --socket instead, among its other clients, if it has room for the blocks; they are gone afterwards")
      ->excludes(program);
  return *this;
}

}  // namespace kvm::ctl
