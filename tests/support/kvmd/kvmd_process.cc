#include "tests/support/kvmd/kvmd_process.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>

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

std::string KvmdBinary() { return KVM_KVMD_BINARY; }

bool SleepMs(int ms) {
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
  return true;
}

KvmdProcess::KvmdProcess(std::vector<std::string> options, std::vector<std::string> prefix)
    : options_(std::move(options)), prefix_(std::move(prefix)) {
  Start();
}

KvmdProcess::~KvmdProcess() {
  if (std::uncaught_exceptions() > 0) std::cerr << "kvmd's log:\n" << Log() << std::endl;
}

void KvmdProcess::Start() {
  std::vector<std::string> arguments = prefix_;
  arguments.insert(arguments.end(), {KvmdBinary(), "--socket", socket()});
  // Small tables, so that a test starts a kvmd in milliseconds.
  if (std::find(options_.begin(), options_.end(), "--max-entries") == options_.end())
    arguments.insert(arguments.end(), {"--max-entries", "100000"});
  arguments.insert(arguments.end(), options_.begin(), options_.end());
  process_ = ChildProcess(arguments, dir_ / "kvmd.log");
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

int KvmdProcess::SettledFds() const {
  int last = OpenFds();
  for (int same = 0; same < 10;) {
    SleepMs(10);
    const int now = OpenFds();
    same = now == last ? same + 1 : 0;
    last = now;
  }
  return last;
}

std::string KvmdProcess::Log() const {
  std::ifstream file(dir_ / "kvmd.log");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace kvm::test
