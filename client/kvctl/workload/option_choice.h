// Options that several commands have: a choice among names, and the memory to use.
#pragma once

#include <CLI/CLI.hpp>

#include <map>
#include <string>
#include <vector>

#include "client/kvctl/workload/pool_memory.h"

namespace kvm::ctl {

// An option whose value is one of few names. `names` and `value` must outlive parsing.
template <class T>
void AddChoice(CLI::App& command, const std::string& name, T& value, const std::map<std::string, T>& names, const std::string& help,
               const std::string& standard) {
  std::vector<std::string> known;
  for (const auto& [text, meaning] : names) known.push_back(text);
  command
      .add_option_function<std::string>(
          name, [&value, &names](const std::string& text) { value = names.at(text); }, help)
      ->check(CLI::IsMember(known))
      ->default_str(standard);
}

inline const std::map<std::string, BackendChoice> kBackendChoices{
    {"auto", BackendChoice::kAuto}, {"cuda", BackendChoice::kCuda}, {"host", BackendChoice::kHost}};

// --backend and --devices.
inline void AddBackendOptions(CLI::App& command, BackendChoice& backend, std::string& devices, const std::string& devices_help) {
  AddChoice(command, "--backend", backend, kBackendChoices, "Memory of the pools: cuda, host, or auto for cuda where there is a usable GPU",
            "auto");
  command.add_option("--devices", devices, devices_help);
}

}  // namespace kvm::ctl
