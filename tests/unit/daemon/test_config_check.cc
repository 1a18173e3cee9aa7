// Every fault of a configuration file is named, with its line.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <regex>
#include <sstream>

#include "daemon/system/config.h"
#include "daemon/system/config_check.h"
#include "tests/catch.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::daemon {
namespace {

// What kvmd --config FILE --check-config prints, without the file's name; "good" of a good file.
std::string Check(const std::string& text) {
  const test::TempDir directory;
  const std::string file = directory / "kvmd.toml";
  std::ofstream(file) << text;
  std::vector<std::string> arguments{"kvmd", "--config", file, "--check-config"};
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  std::ostringstream out, err;
  std::streambuf* const old_out = std::cout.rdbuf(out.rdbuf());
  std::streambuf* const old_err = std::cerr.rdbuf(err.rdbuf());
  const ParsedArguments parsed = ParseArguments(static_cast<int>(argv.size()), argv.data());
  std::cout.rdbuf(old_out);
  std::cerr.rdbuf(old_err);
  REQUIRE(parsed.exit);
  if (parsed.exit_code == 0) return "good";
  std::string said = err.str();
  for (std::size_t at; (at = said.find(file)) != said.npos;) said.erase(at, file.size());
  // As CLI11 2.3 writes a range; 2.4 writes [1 - 9].
  return std::regex_replace(said, std::regex(R"(in range \[(\d+) - (\d+)\])"), "in range $1 to $2");
}

}  // namespace

TEST_CASE("Config check: every fault is named with its line, not the first alone", "[unit]") {
  CHECK(Check("# a comment\nmax-entries = 5\n\nmax-entris = 7\nsocket-mode = \"9\"\nlog-level = \"info\"\n") ==
        ":2: max-entries: Value 5 not in range 64 to 1073741824\n"
        ":4: max-entris: kvmd has no such option\n"
        ":5: socket-mode: is not an octal file mode such as 0660: 9\n");
}

TEST_CASE("Config check: a key that is there twice is a fault of its last line", "[unit]") {
  CHECK(Check("max-models = 3\nmax-regions = 9\nmax-models = 4\n").starts_with(":3: max-models: "));
}

TEST_CASE("Config check: faults in sections are named with the section", "[unit]") {
  const std::string said = Check(
      "max-models = 8\n[domain.a]\nmax-orphans = 3\n[domain.b]\nuids = [5]\nmax-models = 0\nfoo = 1\n[domain.c]\ngids = [7]\n"
      "[domain.d]\ngids = [7]\n[domain.E]\nuids = [9]\n");
  CHECK(said ==
        ":2: [domain.a]: it has neither uids nor gids, so no process is in it\n"
        ":6: [domain.b] max-models: Value 0 not in range 1 to 65535\n"
        ":7: [domain.b] foo: a domain has no such option\n"
        ":10: [domain.d]: group 7 is named twice\n"
        ":12: [domain.E]: the name is not 1 to 32 lower-case letters, digits, '-' and '_'\n");
}

TEST_CASE("Config check: a good file has no fault, also with lists over several lines", "[unit]") {
  CHECK(Check("admins = [1,\n 2]\nmax-models = 3  # few\n[domain.a]\nuids = [1,\n 2]\nmax-host-cache = \"1G\"\n") == "good");
}

TEST_CASE("Config check: whatever is wrong, it ends", "[unit]") {
  const auto never_good = [](const std::string&) { return std::string("--gone: wrong"); };
  const std::vector<ConfigFault> faults = FaultsOf("a = 1\n[b]\nc = 2\n", never_good);
  REQUIRE_FALSE(faults.empty());
  CHECK(faults.size() <= 4);
}

}  // namespace kvm::daemon
