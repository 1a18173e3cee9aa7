// Completion scripts for shells, made of a program's own description of its commands and options,
// so that they can't differ from --help.
#pragma once

#include <map>
#include <string>

namespace CLI {
class App;
}

namespace kvm::ctl {

enum class Shell { kBash, kZsh, kFish };
std::map<std::string, Shell> ShellNames();

// For the program that `app` describes, by the app's name. Commands, options with what they mean,
// and files where an option takes a value.
std::string CompletionScript(const CLI::App& app, Shell shell);

}  // namespace kvm::ctl
