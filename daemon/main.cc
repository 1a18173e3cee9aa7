// kvmd: parse, build, run.
#include <chrono>
#include <csignal>
#include <memory>

#include "daemon/server/server.h"
#include "daemon/system/config.h"
#include "proto/base/standard_fds.h"

namespace {

using namespace kvm::daemon;

// How long kvmd waits, before it exits, for the reader of its log; lines that are not read by then
// are lost.
constexpr std::chrono::seconds kLastLines{1};

int Main(int argc, char** argv) {
  const ParsedArguments arguments = ParseArguments(argc, argv);
  if (arguments.exit) return arguments.exit_code;
  kvm::Result<std::unique_ptr<Server>> server = Server::Create(arguments.config);
  if (!server) {
    Log(LogLevel::kError, "start_failed", {{"error", kvm::ErrcName(server.error().code)}, {"reason", server.error().ToString()}});
    return 1;
  }
  return (*server)->Run() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  kvm::OpenStandardFds();
  // SIGPIPE would end the process if the reader of the log, or a pager that shows the help, has
  // ended.
  std::signal(SIGPIPE, SIG_IGN);
  const int code = Main(argc, argv);
  static_cast<void>(DrainLog(kLastLines));
  return code;
}
