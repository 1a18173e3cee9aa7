// kvmd: parse, build, run.
#include <memory>

#include "daemon/config.h"
#include "daemon/server.h"

int main(int argc, char** argv) {
  using namespace kvm::daemon;
  const ParsedArguments arguments = ParseArguments(argc, argv);
  if (arguments.exit) return arguments.exit_code;
  kvm::Result<std::unique_ptr<Server>> server = Server::Create(arguments.config);
  if (!server) {
    Log(LogLevel::kError, "start_failed", {{"error", kvm::ErrcName(server.error().code)}, {"reason", server.error().ToString()}});
    return 1;
  }
  return (*server)->Run() ? 0 : 1;
}
