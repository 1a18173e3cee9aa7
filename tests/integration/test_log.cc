// A log that is not read: kvmd goes on.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>

#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/wire_client.h"
#include "tests/support/process/child_process.h"
#include "tests/support/process/read_file.h"
#include "tests/support/process/socket_pair.h"
#include "tests/support/process/temp_dir.h"

namespace {

using namespace kvm;
using test::ChildProcess;
using test::Eventually;
using test::WireClient;

// kvmd with a pipe as its standard error, whose other end is the test's.
struct PipedKvmd {
  PipedKvmd() {
    REQUIRE(::mkfifo(fifo().c_str(), 0600) == 0);
    reader.Reset(::open(fifo().c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    REQUIRE(reader);
    process =
        ChildProcess({test::KvmdBinary(), "--socket", socket(), "--max-entries", "10000", "--max-log-lines-per-user", "10000"}, fifo());
    REQUIRE(Eventually([&] { return WireClient::Connect(socket()).has_value(); }));
  }
  std::string fifo() const { return dir / "log"; }
  std::string socket() const { return dir / "kvmd.sock"; }
  WireClient Join() const {
    Result<WireClient> client = WireClient::Connect(socket());
    KVM_REQUIRE_OK(client);
    KVM_REQUIRE_OK(client->Hello("a-client"));
    return std::move(*client);
  }

  test::TempDir dir;
  UniqueFd reader;
  ChildProcess process;
};

}  // namespace

TEST_CASE("Log: a full pipe does not stop kvmd, and once it is read again the lost lines are counted", "[integration]") {
  PipedKvmd kvmd;
  WireClient bystander = kvmd.Join();
  // One page of pipe, so that few lines fill it.
  REQUIRE(::fcntl(kvmd.reader.get(), F_SETPIPE_SZ, 4096) >= 0);
  // 9,000 lines of more than 300 bytes, within the limit that PipedKvmd sets: more than pipe and
  // queue hold together.
  for (int i = 0; i < 9'000; ++i) {
    kvmwire::ClientMessage message;
    message.mutable_adopt_region()->mutable_expected()->set_name(std::string(250, 'x'));
    CHECK_FALSE(bystander.Call(message).has_value());
  }
  // The count of the dropped lines follows those that wait in the queue.
  std::string log;
  const bool said = Eventually(
      [&] {
        char byte[8192];
        for (ssize_t got; (got = ::read(kvmd.reader.get(), byte, sizeof(byte))) > 0;) log.append(byte, static_cast<std::size_t>(got));
        return log.find("event=log_lines_dropped count=") != std::string::npos;
      },
      std::chrono::seconds(40));
  INFO(log.substr(log.size() - std::min<std::size_t>(log.size(), 500)));
  CHECK(said);
}

// kvmd ignores SIGPIPE, and its log's thread takes no signals: with either of them this passes,
// without both kvmd ends.
TEST_CASE("Log: a pipe whose reader has gone does not end kvmd", "[integration]") {
  PipedKvmd kvmd;
  kvmd.reader.Reset();
  for (int i = 0; i < 3; ++i) CHECK(kvmd.Join().QueryStatus().has_value());
  CHECK(kvmd.process.running());
}

// What is not the log's is written by kvmd's main thread, which ignores SIGPIPE. The shell's child
// inherits that from this program, so env sets it back. Where kvmd does not ignore it, that signal
// ends it: seen.
TEST_CASE("Log: a reader of kvmd's help that has gone ends kvmd by no signal", "[integration]") {
  const test::TempDir dir;
  const std::string fifo = dir / "help", said = dir / "said";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  UniqueFd reader(::open(fifo.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  REQUIRE(reader);
  ChildProcess help(
      {"/bin/sh", "-c", "exec 1>" + fifo + "; echo open >&2; read go; exec env --default-signal=PIPE " + test::KvmdBinary() + " --help"},
      said);
  REQUIRE(Eventually([&] { return std::filesystem::exists(said) && std::filesystem::file_size(said) > 0; }));
  reader.Reset();
  help.CloseInput();
  const std::optional<test::ProcessEnd> end = help.Wait(std::chrono::seconds(60));
  REQUIRE(end);
  CHECK(end->signal == 0);
}

TEST_CASE("Log: a kvmd that is started without standard descriptors writes its log into none of its files", "[integration]") {
  const test::TempDir dir;
  const std::string socket = dir / "kvmd.sock";
  ChildProcess process({"/bin/sh", "-c", "exec " + test::KvmdBinary() + " --socket " + socket + " --max-entries 10000 0<&- 1>&- 2>&-"});
  REQUIRE(Eventually([&] { return WireClient::Connect(socket).has_value(); }));
  for (int fd = 0; fd <= 2; ++fd) {
    const std::string link = "/proc/" + std::to_string(process.pid()) + "/fd/" + std::to_string(fd);
    CHECK(std::filesystem::read_symlink(link) == "/dev/null");
  }
  Result<WireClient> client = WireClient::Connect(socket);
  KVM_REQUIRE_OK(client);
  KVM_REQUIRE_OK(client->Hello("client"));
}

TEST_CASE("Log: lines for the journal begin with their priority, and others do not", "[integration]") {
  const test::TempDir dir;
  const auto first_line = [&](const std::string& stream) {
    const std::string socket = dir / "kvmd.sock", file = dir / "log";
    ChildProcess process(
        {"/bin/sh", "-c", "JOURNAL_STREAM=" + stream + " exec " + test::KvmdBinary() + " --socket " + socket + " --max-entries 10000"},
        file);
    REQUIRE(Eventually([&] { return WireClient::Connect(socket).has_value(); }));
    process.Kill();
    const std::string text = test::ReadFile(file);
    std::filesystem::remove(file);
    std::filesystem::remove(socket);
    return text;
  };
  CHECK(first_line("$(stat -Lc %d:%i /proc/self/fd/2)").starts_with("<6>event=listening "));
  // As it is inherited by what a service starts, with another stderr.
  CHECK(first_line("1:2").starts_with("event=listening "));
}
