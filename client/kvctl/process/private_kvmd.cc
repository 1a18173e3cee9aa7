#include "client/kvctl/process/private_kvmd.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "client/kvctl/cli/observer.h"
#include "client/kvctl/process/interrupt.h"
#include "client/kvctl/process/temporary_directory.h"

namespace kvm::ctl {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kStartTimeout{10'000};
constexpr milliseconds kStopTimeout{5'000};

bool IsProgram(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && ::access(path.c_str(), X_OK) == 0;
}

}  // namespace

Result<std::string> FindKvmd(const std::string& given) {
  if (!given.empty()) {
    if (IsProgram(given)) return given;
    return MakeError(Errc::kNotFound, "--kvmd " + given + " is not a program");
  }
  if (Result<std::string> own = OwnBinary()) {
    std::string beside = std::filesystem::path(*own).parent_path() / "kvmd";
    if (IsProgram(beside)) return beside;
  }
  const char* path = std::getenv("PATH");
  std::istringstream directories(path != nullptr ? path : "");
  for (std::string directory; std::getline(directories, directory, ':');) {
    std::string candidate = directory + "/kvmd";
    if (!directory.empty() && IsProgram(candidate)) return candidate;
  }
  return MakeError(Errc::kNotFound, "no kvmd next to kvctl or in PATH; give --kvmd PATH");
}

Result<PrivateKvmd> PrivateKvmd::Start(const PrivateKvmdOptions& options) {
  Result<std::string> program = FindKvmd(options.program);
  if (!program) return program.error();
  Result<std::string> directory = MakeTemporaryDirectory("for the private kvmd ");
  if (!directory) return directory.error();
  PrivateKvmd kvmd;
  kvmd.directory_ = *directory;
  kvmd.socket_ = *directory + "/kvmd.sock";
  if (Status possible = CheckSocketPath(kvmd.socket_); !possible)
    return MakeError(possible.error().code, "TMPDIR is too long for a private kvmd: " + possible.error().message);
  std::vector<std::string> arguments{"--socket", kvmd.socket_, "--max-entries", std::to_string(options.max_entries),
                                     // All of its clients belong to one user.
                                     "--max-clients-per-user", "1024"};
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  Result<ChildProcess> process = ChildProcess::Start(*program, arguments, {.log_path = *directory + "/kvmd.log"});
  if (!process) return process.error();
  kvmd.process_ = std::move(*process);

  const auto deadline = steady_clock::now() + kStartTimeout;
  for (;;) {
    Result<Observer> observer = Observer::Connect(kvmd.socket_, milliseconds(1000));
    if (observer) return kvmd;
    if (Interrupted()) return MakeError(Errc::kCancelled, "interrupted");
    if (!kvmd.process_.Running()) {
      return MakeError(Errc::kUnavailable, *program + " " + kvmd.process_.Ending() + " at start: " + kvmd.LastLogLine());
    }
    const Errc code = observer.error().code;
    if (code != Errc::kUnavailable && code != Errc::kDeadlineExceeded) return observer.error();
    if (steady_clock::now() >= deadline)
      return MakeError(Errc::kUnavailable, *program + " does not answer: " + observer.error().ToString());
    std::this_thread::sleep_for(milliseconds(5));
  }
}

PrivateKvmd::PrivateKvmd(PrivateKvmd&& other) noexcept
    : process_(std::move(other.process_)), directory_(std::exchange(other.directory_, {})), socket_(std::exchange(other.socket_, {})) {}

PrivateKvmd& PrivateKvmd::operator=(PrivateKvmd&& other) noexcept {
  static_cast<void>(Stop());
  process_ = std::move(other.process_);
  directory_ = std::exchange(other.directory_, {});
  socket_ = std::exchange(other.socket_, {});
  return *this;
}

PrivateKvmd::~PrivateKvmd() { static_cast<void>(Stop()); }

Status PrivateKvmd::Stop() {
  if (directory_.empty()) return {};
  const bool was_running = process_.Running();
  process_.Stop(kStopTimeout);
  Status outcome;
  if (process_.pid() > 0 && (!was_running || !process_.Succeeded())) {
    outcome = MakeError(Errc::kSystem, "the private kvmd " + process_.Ending() + ": " + LastLogLine());
  }
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
  directory_.clear();
  return outcome;
}

std::string PrivateKvmd::LastLogLine() const {
  std::ifstream log(directory_ + "/kvmd.log");
  std::string line, last = "(no log)";
  while (std::getline(log, line)) {
    if (!line.empty()) last = line;
  }
  return last;
}

}  // namespace kvm::ctl
