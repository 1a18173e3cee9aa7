#include "client/kvctl/cli/completion.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <vector>

#include <CLI/App.hpp>

namespace kvm::ctl {
namespace {

struct Word {
  std::string text;  // a command, or an option with its dashes
  std::string help;
};

// What may follow a command, or the program's name (then `path` is empty).
struct Place {
  std::string path;  // "bench find"
  std::vector<Word> commands, options;
};

struct Program {
  std::string name;
  std::vector<Place> places;
  std::set<std::string> with_value;  // options that take the next word
};

void AddOptions(const CLI::App& app, Place& place, Program& program) {
  for (const CLI::Option* option : app.get_options()) {
    const auto add = [&](const std::string& dashes, const std::string& name) {
      place.options.push_back({dashes + name, option->get_description()});
      if (option->get_items_expected_max() > 0) program.with_value.insert(dashes + name);
    };
    for (const std::string& name : option->get_lnames()) add("--", name);
    for (const std::string& name : option->get_snames()) add("-", name);
  }
}

// `shared`: options of the apps around it, which may stand behind its name as well.
void AddPlace(const CLI::App& app, const std::string& path, const std::vector<Word>& shared, Program& program) {
  Place place{path, {}, {}};
  AddOptions(app, place, program);
  std::vector<Word> passed_on = shared;
  for (const Word& option : place.options) {
    if (option.text != "--help" && option.text != "-h" && option.text != "--version") passed_on.push_back(option);
  }
  place.options.insert(place.options.end(), shared.begin(), shared.end());
  const std::vector<const CLI::App*> commands = app.get_subcommands([](const CLI::App* command) { return !command->get_group().empty(); });
  for (const CLI::App* command : commands) place.commands.push_back({command->get_name(), command->get_description()});
  program.places.push_back(std::move(place));
  for (const CLI::App* command : commands) AddPlace(*command, (path.empty() ? "" : path + " ") + command->get_name(), passed_on, program);
}

// A word in single quotes; a quote in it is left out, which all three shells would write another
// way.
std::string Quoted(std::string text) {
  std::erase(text, '\'');
  std::replace(text.begin(), text.end(), '\n', ' ');
  return "'" + text + "'";
}

// The name of a shell's function: of letters and underscores.
std::string FunctionOf(const Program& program) {
  std::string name = "_" + program.name;
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
}

std::string Joined(const std::set<std::string>& words, const std::string& between) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : between) + word;
  return out;
}

std::string PathsOf(const Program& program, const std::string& between) {
  std::set<std::string> paths;
  for (const Place& place : program.places) {
    if (!place.path.empty()) paths.insert("'" + place.path + "'");
  }
  return Joined(paths, between);
}

// For bash and zsh: sets `command` to the commands among the words in front of the one that is
// completed, and `value` where that one belongs to an option.
std::string FindsCommand(const Program& program, const std::string& words) {
  std::string out = "  local command='' value='' word\n  for word in " + words +
                    "; do\n    if [[ -n $value ]]; then value=''; continue; fi\n    case $word in\n";
  if (!program.with_value.empty()) out += "      " + Joined(program.with_value, "|") + ") value=1 ;;\n";
  out += "      -*) ;;\n      *)\n        case \"${command:+$command }$word\" in\n          ";
  const std::string paths = PathsOf(program, "|");
  out += (paths.empty() ? "''" : paths) + ") command=\"${command:+$command }$word\" ;;\n        esac ;;\n    esac\n  done\n";
  return out;
}

std::string Bash(const Program& program) {
  const std::string function = FunctionOf(program);
  std::string out = "# bash completion of " + program.name + "\n" + function + "() {\n  local current=${COMP_WORDS[COMP_CWORD]} words=''\n";
  out += FindsCommand(program, "\"${COMP_WORDS[@]:1:COMP_CWORD-1}\"");
  out +=
      "  if [[ -n $value ]]; then\n    compopt -o default 2>/dev/null\n    COMPREPLY=()\n    return\n  fi\n"
      "  case $command in\n";
  for (const Place& place : program.places) {
    std::string commands, options;
    for (const Word& word : place.commands) commands += word.text + " ";
    for (const Word& word : place.options) options += word.text + " ";
    out += "    '" + place.path + "') if [[ $current == -* ]]; then words='" + options + "'; else words='" + commands + "'; fi ;;\n";
  }
  return out + "  esac\n  mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")\n}\ncomplete -F " + function + " " +
         program.name + "\n";
}

std::string Zsh(const Program& program) {
  const std::string function = FunctionOf(program);
  std::string out = "#compdef " + program.name + "\n" + function + "() {\n";
  out += FindsCommand(program, "\"${(@)words[2,CURRENT-1]}\"");
  out += "  if [[ -n $value ]]; then _files; return; fi\n  local -a commands options\n  case $command in\n";
  // _describe takes what is behind the first colon as the word's meaning.
  const auto list = [](const std::vector<Word>& words) {
    std::string items;
    for (const Word& word : words) items += " " + Quoted(word.text + ":" + word.help);
    return "(" + items + " )";
  };
  for (const Place& place : program.places)
    out += "    '" + place.path + "') commands=" + list(place.commands) + " options=" + list(place.options) + " ;;\n";
  return out + "  esac\n  (( $#commands )) && _describe command commands\n  _describe -o option options\n}\n" +
         // Sourced, it registers itself; as a file of fpath, it is the function.
         "if [[ ${funcstack[1]} == " + function + " ]]; then " + function + " \"$@\"; else compdef " + function + " " + program.name +
         "; fi\n";
}

std::string Fish(const Program& program) {
  const std::string function = "__" + FunctionOf(program).substr(1) + "_at";
  std::string out = "# fish completion of " + program.name + "\nfunction " + function + "\n  set -l path ''\n  set -l value ''\n" +
                    "  for word in (commandline -opc)[2..-1]\n    if test -n \"$value\"\n      set value ''\n      continue\n    end\n" +
                    "    switch $word\n";
  if (!program.with_value.empty()) out += "      case " + Joined(program.with_value, " ") + "\n        set value 1\n";
  out += "      case '-*'\n      case '*'\n        switch (string trim -- \"$path $word\")\n";
  if (const std::string paths = PathsOf(program, " "); !paths.empty())
    out += "          case " + paths + "\n            set path (string trim -- \"$path $word\")\n";
  out += "        end\n    end\n  end\n  test \"$path\" = \"$argv[1]\"\nend\n";
  const std::string begin = "complete -c " + program.name + " -n \"" + function + " '";
  out += "complete -c " + program.name + " -f\n";
  for (const Place& place : program.places) {
    for (const Word& word : place.commands) out += begin + place.path + "'\" -a " + word.text + " -d " + Quoted(word.help) + "\n";
    for (const Word& word : place.options) {
      const bool is_long = word.text.starts_with("--");
      out += begin + place.path + "'\" " + (is_long ? "-l " + word.text.substr(2) : "-s " + word.text.substr(1)) +
             (program.with_value.contains(word.text) ? " -r -F" : "") + " -d " + Quoted(word.help) + "\n";
    }
  }
  return out;
}

}  // namespace

std::map<std::string, Shell> ShellNames() { return {{"bash", Shell::kBash}, {"zsh", Shell::kZsh}, {"fish", Shell::kFish}}; }

std::string CompletionScript(const CLI::App& app, Shell shell) {
  Program program{app.get_name(), {}, {}};
  AddPlace(app, "", {}, program);
  switch (shell) {
    case Shell::kBash: return Bash(program);
    case Shell::kZsh: return Zsh(program);
    case Shell::kFish: return Fish(program);
  }
  return {};
}

}  // namespace kvm::ctl
