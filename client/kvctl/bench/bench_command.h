// One benchmark on a command line: its options, and what runs when it is chosen.
#pragma once

#include <functional>
#include <memory>

#include "client/kvctl/bench/bench.h"

namespace kvm::ctl {

class BenchCommand {
 public:
  using Run = std::function<int(const CommonOptions&, const BenchOptions&)>;

  // `common` and `action` have to outlive the parsing.
  BenchCommand(CLI::App& parent, const char* name, const char* help, const CommonOptions& common, Action& action, Run run);

  BenchOptions& options() noexcept { return *options_; }
  CLI::App& command() noexcept { return *command_; }

  BenchCommand& Rounds(const char* help);
  BenchCommand& Kvmd();     // --kvmd, --on-this-node
  BenchCommand& Entries();  // --entries, and those of Kvmd
  BenchCommand& Lookups();  // --keys, --shuffle, --rounds
  BenchCommand& Imports();  // --bytes, --rounds

 private:
  std::shared_ptr<BenchOptions> options_;
  CLI::App* command_;
};

inline constexpr const char* kBenchDevices =
    "The exporter's GPU and the importer's: ordinals or UUIDs, separated by a comma; default: the first two";

}  // namespace kvm::ctl
