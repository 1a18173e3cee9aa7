// An option whose value is one of few names.
#pragma once

#include <CLI/CLI.hpp>

#include <map>
#include <string>
#include <vector>

namespace kvm::ctl {

// `names` and `value` must outlive parsing.
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

}  // namespace kvm::ctl
