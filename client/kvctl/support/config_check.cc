// kvctl config check: has kvmd read a file, and shows what it says.
#include <charconv>
#include <chrono>
#include <iostream>
#include <sstream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/process/private_kvmd.h"
#include "client/kvctl/support/program_output.h"
#include "client/kvctl/support/support.h"

namespace kvm::ctl {
namespace {

constexpr std::chrono::seconds kCheckTimeout{30};

// "FILE:LINE: OPTION: what" or any other line.
boost::json::object FaultOf(const std::string& line, const std::string& file) {
  boost::json::object fault{{"line", nullptr}, {"option", nullptr}, {"what", line}};
  if (!line.starts_with(file + ":")) return fault;
  const char* const end = line.data() + line.size();
  unsigned number = 0;
  const auto [after, error] = std::from_chars(line.data() + file.size() + 1, end, number);
  if (error != std::errc{} || end - after < 2 || *after != ':') return fault;
  const std::string rest(after + 2, end);
  const std::size_t colon = rest.find(": ");
  if (number != 0) fault["line"] = number;
  if (colon != rest.npos) fault["option"] = rest.substr(0, colon);
  fault["what"] = colon == rest.npos ? rest : rest.substr(colon + 2);
  return fault;
}

}  // namespace

int RunConfigCheck(const CommonOptions& common, const ConfigCheckOptions& options) {
  const Result<std::string> kvmd = FindKvmd(options.kvmd);
  if (!kvmd) return Fail(kvmd.error());
  const Result<ProgramOutput> said = OutputOf(*kvmd, {"--config", options.file, "--check-config"}, kCheckTimeout);
  if (!said) return Fail(said.error());
  if (common.json) {
    boost::json::array faults;
    std::istringstream lines(said->succeeded ? "" : said->text);
    for (std::string line; std::getline(lines, line);) {
      if (!line.empty()) faults.push_back(FaultOf(line, options.file));
    }
    PrintJson({{"file", options.file}, {"valid", said->succeeded}, {"faults", std::move(faults)}});
  } else if (said->succeeded) {
    std::cout << Printable(options.file) << ": no fault\n";
  } else {
    std::istringstream lines(said->text);
    for (std::string line; std::getline(lines, line);) std::cout << Printable(line) << '\n';
  }
  return said->succeeded ? kHealthy : kUsage;
}

}  // namespace kvm::ctl
