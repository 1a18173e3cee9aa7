// The options of every command of kvctl, and the functions that add commands to the command line.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "kvm/error.h"
#include "proto/wire/protocol_limits.h"

namespace CLI {
class App;
}

namespace kvm::ctl {

struct CommonOptions {
  std::string socket = kDefaultSocketPath;
  bool json = false;
  std::uint32_t timeout_ms = 2000;

  std::chrono::milliseconds timeout() const noexcept { return std::chrono::milliseconds(timeout_ms); }
};

// The function to call once the command line is parsed; it returns the exit code.
using Action = std::function<int()>;

// --socket, --json and --timeout-ms. `common` has to outlive the parsing.
void AddCommonOptions(CLI::App& app, CommonOptions& common);
void AddViewCommands(CLI::App& app, const CommonOptions& common, Action& action);
void AddKeyCommands(CLI::App& app, const CommonOptions& common, Action& action);
void AddDoctorCommand(CLI::App& app, const CommonOptions& common, Action& action);
void AddExporterCommand(CLI::App& app, const CommonOptions& common, Action& action);
void AddLiveCommands(CLI::App& app, const CommonOptions& common, Action& action);
void AddMeshCommands(CLI::App& app, const CommonOptions& common, Action& action);
void AddReplayCommand(CLI::App& app, const CommonOptions& common, Action& action);
void AddSimulateCommand(CLI::App& app, const CommonOptions& common, Action& action);
void AddBenchCommands(CLI::App& app, const CommonOptions& common, Action& action);
void AddSupportCommands(CLI::App& app, const CommonOptions& common, Action& action);
void AddCompletionCommand(CLI::App& app, Action& action);  // `app`: of the whole program

// Prints one line to stderr, "kvctl: what went wrong"; returns the exit code for the error.
int Fail(const Error& error);

}  // namespace kvm::ctl
