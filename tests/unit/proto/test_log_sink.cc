// LogSink with a file, with a pipe that is not read, and with a pipe whose reader has gone.
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <string>

#include "proto/base/unique_fd.h"
#include "proto/log/log_sink.h"
#include "tests/catch.h"

namespace {

using kvm::LogSink;
using kvm::UniqueFd;
using namespace std::chrono_literals;

struct Pipe {
  Pipe() {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    read.Reset(ends[0]);
    write.Reset(ends[1]);
  }
  // Takes all the room there is.
  std::size_t Fill() {
    std::size_t filled = 0;
    REQUIRE(::fcntl(write.get(), F_SETFL, O_NONBLOCK) == 0);
    for (const std::string page(4096, 'f'); ::write(write.get(), page.data(), page.size()) > 0;) filled += page.size();
    REQUIRE(::fcntl(write.get(), F_SETFL, 0) == 0);
    return filled;
  }
  // Until `end` has come.
  std::string ReadUntil(const std::string& end) {
    std::string text;
    char buffer[4096];
    while (text.find(end) == std::string::npos) {
      const ssize_t got = ::read(read.get(), buffer, sizeof(buffer));
      if (got <= 0) return text;
      text.append(buffer, static_cast<std::size_t>(got));
    }
    return text;
  }
  UniqueFd read, write;
};

std::string Notice(std::uint64_t count) { return "dropped " + std::to_string(count) + "\n"; }

}  // namespace

TEST_CASE("Log sink: a pipe without a reader stops no writer, and dropped lines are counted", "[unit]") {
  Pipe pipe;
  LogSink sink(pipe.write.get(), Notice, 10'000);
  const std::size_t filled = pipe.Fill();
  const std::string line(999, 'x');
  for (int i = 0; i < 500; ++i) sink.Write(line + "\n");
  CHECK_FALSE(sink.Drain(0ms));
  const std::string text = pipe.ReadUntil("dropped ");
  CHECK(text.find(line + "\n" + line + "\n") == filled);
  std::size_t lines = 0;
  for (std::size_t at = 0; (at = text.find(line + "\n", at)) != std::string::npos; at += line.size()) ++lines;
  const std::string rest = text.substr(text.find("dropped ")) + (text.back() == '\n' ? "" : pipe.ReadUntil("\n"));
  CHECK(rest == Notice(500 - lines));
  sink.Write("goes on\n");
  CHECK(pipe.ReadUntil("\n") == "goes on\n");
  CHECK(sink.Drain(5s));
}

// Its thread takes no signals. Where it does, SIGPIPE ends the process: seen.
TEST_CASE("Log sink: a pipe whose reader has gone loses the lines, and writers go on", "[unit]") {
  const auto before = std::signal(SIGPIPE, SIG_DFL);
  Pipe pipe;
  LogSink sink(pipe.write.get(), Notice);
  pipe.read.Reset();
  for (int i = 0; i < 100; ++i) sink.Write("nobody reads this\n");
  CHECK(sink.Drain(5s));
  std::signal(SIGPIPE, before);
}

TEST_CASE("Log sink: a line is in a file as soon as it is written", "[unit]") {
  char path[] = "/tmp/kvm-log-XXXXXX";
  const UniqueFd file(::mkstemp(path));
  REQUIRE(file);
  ::unlink(path);
  LogSink sink(file.get(), Notice);
  sink.Write("a line\n");
  char buffer[16] = {};
  CHECK(::pread(file.get(), buffer, sizeof(buffer), 0) == 7);
  CHECK(std::string(buffer) == "a line\n");
}
