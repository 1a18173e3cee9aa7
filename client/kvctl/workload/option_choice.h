// Options that several commands have: the memory to use.
#pragma once

#include <CLI/CLI.hpp>

#include <map>
#include <string>

#include "client/kvctl/cli/choice.h"
#include "client/kvctl/workload/pool_memory.h"

namespace kvm::ctl {

inline const std::map<std::string, BackendChoice> kBackendChoices{
    {"auto", BackendChoice::kAuto}, {"cuda", BackendChoice::kCuda}, {"host", BackendChoice::kHost}};

// --backend and --devices.
inline void AddBackendOptions(CLI::App& command, BackendChoice& backend, std::string& devices, const std::string& devices_help) {
  AddChoice(command, "--backend", backend, kBackendChoices, "Memory of the pools: cuda, host, or auto for cuda where there is a usable GPU",
            "auto");
  command.add_option("--devices", devices, devices_help);
}

}  // namespace kvm::ctl
