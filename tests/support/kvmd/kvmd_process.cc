#include "tests/support/kvmd/kvmd_process.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <csignal>
#include <cstring>

#include "tests/catch.h"
#include "tests/support/process/open_fds.h"

namespace kvm::test {
namespace {

bool Accepts(const std::string& path) {
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  return socket && ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
}

}  // namespace

KvmdProcess::KvmdProcess(std::vector<std::string> options, std::vector<std::string> prefix)
    : options_(std::move(options)), prefix_(std::move(prefix)) {
  Start();
}

void KvmdProcess::Start() {
  std::vector<std::string> arguments = prefix_;
  const std::vector<std::string> command = home_.CommandLine(options_);
  arguments.insert(arguments.end(), command.begin(), command.end());
  process_ = ChildProcess(arguments, home_.log_path());
  const bool accepts = Eventually([&] { return Accepts(socket()) || !process_.running(); }) && process_.running();
  INFO("kvmd's log:\n" << Log());
  REQUIRE(accepts);
}

void KvmdProcess::Kill() { process_.Kill(); }

ProcessEnd KvmdProcess::Stop() {
  process_.Signal(SIGTERM);
  return process_.Wait(std::chrono::seconds(10)).value_or(ProcessEnd{});
}

int KvmdProcess::OpenFds() const { return test::OpenFds(process_.pid()); }
int KvmdProcess::SettledFds() const { return test::SettledFds(process_.pid()); }

}  // namespace kvm::test
