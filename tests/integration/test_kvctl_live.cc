// kvctl top, stat and events against a real kvmd: pages on a terminal and without one, lines, JSON.
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>

#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/process/child_process.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace kvm::test;

std::unique_ptr<Worker> Publisher(const KvmdProcess& kvmd) {
  Result<std::unique_ptr<Worker>> worker = Worker::Start({.socket = kvmd.socket(), .name = "publisher"});
  KVM_REQUIRE_OK(worker);
  (*worker)->Publish("a:8", 0);
  KVM_REQUIRE_OK((*worker)->Flush());
  return std::move(*worker);
}

}  // namespace

TEST_CASE("kvctl stat: prints a line for each interval, and as JSON an object for each", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Publisher(kvmd);
  const Sandbox sandbox;
  const std::string options = "stat --interval 0.1 --count 3 --socket " + kvmd.socket();
  const auto text = sandbox.Run(options);
  INFO(text.out << text.err);
  CHECK(text.code == 0);
  CHECK(std::count(text.out.begin(), text.out.end(), '\n') == 4);
  const auto json = sandbox.Run(options + " --json");
  CHECK(json.code == 0);
  std::istringstream lines(json.out);
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const boost::json::value value = boost::json::parse(line);
    CHECK(Number(value, "blocks") == 8);
    CHECK(Number(value, "clients") == 2);
  }
  CHECK(count == 3);
  const auto top = sandbox.Run("top --interval 0.1 --count 1 --json --socket " + kvmd.socket());
  CHECK(Number(top.Json(), "blocks") == 8);
}

TEST_CASE("kvctl top: without a terminal it prints plain pages, with the workers", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Publisher(kvmd);
  const Sandbox sandbox;
  const auto top = sandbox.Run("top --interval 0.1 --count 2 --socket " + kvmd.socket());
  INFO(top.out << top.err);
  CHECK(top.code == 0);
  CHECK(top.out.find('\x1b') == top.out.npos);
  CHECK(top.out.find("\npublisher ") != top.out.npos);
  CHECK(top.out.find("\n\nkvmd 0.") != top.out.npos);
}

TEST_CASE("kvctl top: on a terminal it draws on a page of its own, and gives the terminal back", "[integration]") {
  if (::system("command -v script >/dev/null") != 0) KVM_SKIP("no script here (Debian package bsdutils)");
  KvmdProcess kvmd;
  const auto worker = Publisher(kvmd);
  const Sandbox sandbox;
  const std::string typescript = sandbox.path() / "typescript";
  const std::string top = Kvctl() + " top --interval 0.1 --count 2 --socket " + kvmd.socket();
  REQUIRE(::system(("script -qec '" + top + "' " + typescript + " >/dev/null </dev/null").c_str()) == 0);
  const std::string drawn = ReadFile(typescript);
  CHECK(drawn.find("\x1b[?1049h") != drawn.npos);
  CHECK(drawn.find("publisher") != drawn.npos);
  CHECK(drawn.find("\x1b[2J") == drawn.npos);  // never blank in between
  CHECK(drawn.find("\x1b[?25h\x1b[?1049l") != drawn.npos);
}

TEST_CASE("kvctl top, stat and events: without kvmd they say so", "[integration]") {
  const Sandbox sandbox;
  for (const char* command : {"top", "stat", "events"}) {
    const auto refused = sandbox.Run(std::string(command) + " --count 1 --socket /nonexistent/kvmd.sock");
    CHECK(refused.code == 2);
    CHECK(refused.err.find("can't reach kvmd") != refused.err.npos);
  }
}

TEST_CASE("kvctl events: tells of kvmd's start and of workers, and with --follow of what happens then", "[integration]") {
  KvmdProcess kvmd;
  auto worker = Publisher(kvmd);
  const Sandbox sandbox;
  const auto known = sandbox.Run("events --json --socket " + kvmd.socket());
  INFO(known.out << known.err);
  CHECK(known.code == 0);
  CHECK(std::count(known.out.begin(), known.out.end(), '\n') == 2);
  CHECK(known.out.find(" has started\"}\n") != known.out.npos);
  CHECK(known.out.find("worker publisher (pid ") != known.out.npos);

  ChildProcess following({Kvctl(), "events", "--follow", "--interval", "0.1", "--socket", kvmd.socket()});
  const auto told = [&](const std::string& what) {
    while (const std::optional<std::string> line = following.ReadLine(std::chrono::seconds(60))) {
      if (line->find(what) != std::string::npos) return true;
    }
    return false;
  };
  CHECK(told("  kvmd 0."));
  CHECK(told("  worker publisher (pid "));
  worker.reset();
  CHECK(told(") has left"));
  kvmd.Kill();
  CHECK(told("  kvmd does not answer: "));
  kvmd.Start();
  CHECK(told("  kvmd answers again"));
  CHECK(told("  kvmd was restarted"));
}
