// kvmd: parse, build, run.
#include <chrono>
#include <csignal>
#include <memory>

#include "daemon/server/server.h"
#include "daemon/system/config.h"
#include "proto/base/standard_fds.h"

namespace {

using namespace kvm::daemon;

// How long to wait for a reader of the log; lines that nobody reads end with the process.
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
  // The reader of the log, or a pager that shows the help, may have ended.
  std::signal(SIGPIPE, SIG_IGN);
  const int code = Main(argc, argv);
  static_cast<void>(DrainLog(kLastLines));
  return code;
}
