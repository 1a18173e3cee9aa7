#include "client/kvctl/cli/common_options.h"

#include <CLI/CLI.hpp>

#include <iostream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/text.h"

namespace kvm::ctl {

void AddCommonOptions(CLI::App& app, CommonOptions& common) {
  app.add_option("--socket", common.socket, "Socket of kvmd")->envname("KVMD_SOCKET")->capture_default_str();
  app.add_flag("--json", common.json, "Print one JSON value instead of tables");
  app.add_option("--timeout-ms", common.timeout_ms, "How long to wait for kvmd")->capture_default_str()->check(CLI::Range(1u, 600'000u));
}

int Fail(const Error& error) {
  std::cerr << "kvctl: " << Printable(error.ToString()) << std::endl;
  return ExitFor(error.code);
}

}  // namespace kvm::ctl
