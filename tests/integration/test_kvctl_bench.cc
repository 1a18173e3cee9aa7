// kvctl bench and the kvmd that a node runs: it is left alone unless one says otherwise, and then
// it is left as it was; what did not happen is no figure.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <sstream>
#include <thread>

#include "proto/base/unique_fd.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_children.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/remote_worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::ChildrenOf;
using test::Eventually;
using test::KvmdProcess;
using test::Number;
using test::ReadFile;
using test::RemoteWorker;
using test::Sandbox;
using test::StartKvctl;
using test::Text;

constexpr const char* kPeer = "bench-peer";

// A kvmd with a host cache, of which one worker holds five blocks.
struct BusyNode {
  explicit BusyNode(const std::string& max_entries)
      : kvmd({"--max-entries", max_entries, "--host-cache", "64M", "--host-cache-admission", "publish"}),
        worker({.socket = kvmd.socket(), .name = "pool", .offload = OffloadMode::kNever}) {
    worker.Publish("a:5", 0);
  }

  boost::json::value Status() const { return sandbox.Run("status --json --socket " + kvmd.socket()).Json(); }
  std::int64_t Counter(const char* name) const { return Number(Status().at("counters"), name); }
  std::size_t Regions() const { return sandbox.Run("regions --json --socket " + kvmd.socket()).Json().at("regions").as_array().size(); }
  bool HasClient(const std::string& name) const {
    const boost::json::value list = sandbox.Run("clients --json --socket " + kvmd.socket()).Json();
    const auto& clients = list.at("clients").as_array();
    return std::any_of(clients.begin(), clients.end(), [&](const auto& client) { return Text(client, "name").find(name) == 0; });
  }
  // As it was before anything was measured.
  void CheckUntouched(std::int64_t offloaded) {
    CHECK(Eventually([&] { return Regions() == regions; }));
    const boost::json::value status = Status();
    const boost::json::value& domain = status.at("domains").at(0);
    CHECK(Number(domain, "orphans") == 0);
    CHECK(Number(domain, "models") == 1);
    CHECK(Number(domain, "entries") == entries);
    CHECK(Number(domain.at("host_cache"), "stored") == offloaded);
    CHECK(Number(status.at("counters"), "evicted") == 0);
    CHECK(worker.Find("a:5") == 5);
  }
  std::int64_t Offloaded() const { return Number(Status().at("domains").at(0).at("host_cache"), "stored"); }

  Sandbox sandbox;
  KvmdProcess kvmd;
  RemoteWorker worker;
  std::size_t regions = 0;
  std::int64_t entries = 0;

  // Once all is there that the worker brings.
  void Settle() {
    std::int64_t before = -1;
    REQUIRE(Eventually([&] {
      const std::int64_t seen = Offloaded();
      test::SleepMs(100);
      return std::exchange(before, seen) == seen;
    }));
    regions = Regions();
    entries = Number(Status().at("domains").at(0), "entries");
  }
};

// Changes a byte of each block of that process's pool without a write: the generations stay as they
// are.
bool SpoilBlocks(pid_t process, std::uint64_t blocks, std::uint64_t block_bytes) {
  std::istringstream maps(ReadFile("/proc/" + std::to_string(process) + "/maps"));
  const UniqueFd memory(::open(("/proc/" + std::to_string(process) + "/mem").c_str(), O_RDWR | O_CLOEXEC));
  if (!memory) return false;
  for (std::string line; std::getline(maps, line);) {
    unsigned long long begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx rw-s", &begin, &end) != 2 || end - begin != blocks * block_bytes) continue;
    if (line.find(" rw-s ") == std::string::npos || line.find("memfd:") == std::string::npos) continue;
    for (std::uint64_t block = 0; block < blocks; ++block) {
      const auto at = static_cast<off_t>(begin + block * block_bytes + 8);
      unsigned char byte = 0;
      if (::pread(memory.get(), &byte, 1, at) != 1) return false;
      byte ^= 1;
      if (::pwrite(memory.get(), &byte, 1, at) != 1) return false;
    }
    return true;
  }
  return false;
}

// Waits until a lookup benchmark on the node measures.
ctl::ChildProcess StartLongFind(const Sandbox& sandbox, const BusyNode& node) {
  ctl::ChildProcess bench =
      StartKvctl(sandbox, {"bench", "find", "--on-this-node", "--socket", node.kvmd.socket(), "--entries", "2000", "--rounds", "10000000"});
  REQUIRE(Eventually([&] { return node.HasClient("bench-find"); }, 40s));
  return bench;
}

}  // namespace

TEST_CASE("kvctl bench: a socket that is named does not make it measure on the node's kvmd", "[integration]") {
  BusyNode node("1000");
  node.Settle();
  const std::int64_t offloaded = node.Offloaded(), published = node.Counter("published");
  for (const std::string command : {"find --entries 5000 --keys 100 --rounds 20", "publish --entries 5000 --rounds 5",
                                    "memory --entries 5000", "import --backend host --bytes 1048576 --block-bytes 4096 --rounds 3"}) {
    INFO(command);
    for (const bool by_option : {true, false}) {
      const Sandbox::Output output = node.sandbox.Run("--json bench " + command + (by_option ? " --socket " + node.kvmd.socket() : ""),
                                                      "KVMD_SOCKET=" + node.kvmd.socket());
      INFO(output.err);
      REQUIRE(output.code == 0);
      CHECK(Text(output.Json(), "kvmd") == "private");
    }
  }
  CHECK(node.Counter("published") == published);
  node.CheckUntouched(offloaded);
  CHECK(node.sandbox.NothingLeft());
}

TEST_CASE("kvctl bench: with --on-this-node the node's kvmd is as before once it is done", "[integration]") {
  BusyNode node("100000");
  node.Settle();
  const std::int64_t offloaded = node.Offloaded();
  for (const std::string command : {"find --entries 5000 --keys 100 --rounds 20", "publish --entries 5000 --rounds 5",
                                    "memory --entries 5000", "import --backend host --bytes 1048576 --block-bytes 4096 --rounds 3"}) {
    INFO(command);
    const Sandbox::Output output = node.sandbox.Run("--json bench " + command + " --on-this-node --socket " + node.kvmd.socket());
    INFO(output.err);
    REQUIRE(output.code == 0);
    CHECK(Text(output.Json(), "kvmd") == node.kvmd.socket());
    CHECK(node.Regions() == node.regions);  // also without waiting
    node.CheckUntouched(offloaded);
  }
}

TEST_CASE("kvctl bench: a node's kvmd without room for the blocks is refused, and keeps its own", "[integration]") {
  BusyNode node("1024");
  node.Settle();
  const std::int64_t offloaded = node.Offloaded(), published = node.Counter("published");
  for (const std::string command : {"find --entries 1020 --keys 100", "publish --entries 1000", "memory --entries 5000",
                                    "import --backend host --bytes 8388608 --block-bytes 4096"}) {
    INFO(command);
    const Sandbox::Output output = node.sandbox.Run("--json bench " + command + " --on-this-node --socket " + node.kvmd.socket());
    CHECK(output.code == 3);
    CHECK(output.out.empty());
    CHECK(output.err.find("it would evict the node's own") != std::string::npos);
  }
  CHECK(node.Counter("published") == published);
  node.CheckUntouched(offloaded);
}

TEST_CASE("kvctl bench find: a lookup that misses a key is an error, and there is no figure", "[integration]") {
  BusyNode node("10000");
  node.Settle();
  const std::int64_t offloaded = node.Offloaded();
  ctl::ChildProcess bench = StartLongFind(node.sandbox, node);
  const std::vector<pid_t> peers = ChildrenOf(bench.pid(), kPeer);
  REQUIRE(peers.size() == 1);
  ::kill(peers[0], SIGKILL);
  REQUIRE(bench.WaitFor(40s));
  CHECK(bench.Ending() == "exited with 3");
  const std::string log = ReadFile(node.sandbox.path() / "log");
  CHECK(log.find("kvctl: ") == 0);
  CHECK(log.find("p50") == std::string::npos);
  node.CheckUntouched(offloaded);
}

TEST_CASE("kvctl bench import: blocks that do not hold what their keys say are an error, and there is no figure", "[integration]") {
  constexpr std::uint64_t kBlocks = 512, kBytes = 65536;
  BusyNode node("100000");
  node.Settle();
  const std::int64_t offloaded = node.Offloaded();
  ctl::ChildProcess bench =
      StartKvctl(node.sandbox, {"bench", "import", "--on-this-node", "--socket", node.kvmd.socket(), "--backend", "host", "--bytes",
                                std::to_string(kBlocks * kBytes), "--block-bytes", std::to_string(kBytes), "--rounds", "3000"});
  REQUIRE(Eventually([&] { return Number(node.Status().at("domains").at(0), "entries") >= node.entries + std::int64_t{kBlocks}; }, 40s));
  const std::vector<pid_t> peers = ChildrenOf(bench.pid(), kPeer);
  REQUIRE(peers.size() == 1);
  REQUIRE(SpoilBlocks(peers[0], kBlocks, kBytes));
  REQUIRE(bench.WaitFor(60s));
  CHECK(bench.Ending() == "exited with 3");
  const std::string log = ReadFile(node.sandbox.path() / "log");
  INFO(log);
  CHECK(log.find("does not hold what its key says") != std::string::npos);
  CHECK(log.find("p50") == std::string::npos);
  node.CheckUntouched(offloaded);
}

TEST_CASE("kvctl bench: interrupted or killed, it leaves nothing at the node's kvmd", "[integration]") {
  BusyNode node("10000");
  node.Settle();
  const std::int64_t offloaded = node.Offloaded();
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGKILL}) {
    INFO("signal " << signal);
    ctl::ChildProcess bench = StartLongFind(node.sandbox, node);
    const std::vector<pid_t> children = ChildrenOf(bench.pid());
    ::kill(bench.pid(), signal);
    REQUIRE(bench.WaitFor(40s));
    CHECK(bench.Ending() == (signal == SIGKILL ? "killed by signal 9 (Killed)" : "exited with 130"));
    CHECK(Eventually([&] { return std::all_of(children.begin(), children.end(), [](pid_t child) { return ::kill(child, 0) != 0; }); }));
    node.CheckUntouched(offloaded);
    CHECK(node.sandbox.NothingLeft());
  }
}

TEST_CASE("kvctl bench: interrupted, a kvmd of its own goes with it", "[integration]") {
  const Sandbox sandbox;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    INFO("signal " << signal);
    ctl::ChildProcess bench = StartKvctl(sandbox, {"bench", "find", "--entries", "2000", "--rounds", "10000000"});
    REQUIRE(Eventually([&] { return ChildrenOf(bench.pid()).size() == 2; }, 40s));
    const std::vector<pid_t> children = ChildrenOf(bench.pid());
    ::kill(bench.pid(), signal);
    REQUIRE(bench.WaitFor(40s));
    CHECK(bench.Ending() == "exited with 130");
    for (const pid_t child : children) CHECK(::kill(child, 0) != 0);
    CHECK(sandbox.NothingLeft());
  }
}

TEST_CASE("kvctl replay: interrupted or killed, it leaves nothing at the node's kvmd, nor in its host cache", "[integration]") {
  BusyNode node("10000");
  node.Settle();
  const std::int64_t offloaded = node.Offloaded();
  for (const int signal : {0, SIGINT, SIGTERM, SIGKILL}) {
    INFO("signal " << signal);
    ctl::ChildProcess replay =
        StartKvctl(node.sandbox, {"replay", "--backend", "host", "--socket", node.kvmd.socket(), "--workload", "chat", "--requests",
                                  signal == 0 ? "200" : "400000", "--workers", "2", "--pool-blocks", "500"});
    if (signal != 0) {
      const std::int64_t before = node.Counter("published");
      REQUIRE(Eventually([&] { return node.Counter("published") > before + 100; }, 40s));
      ::kill(replay.pid(), signal);
    }
    REQUIRE(replay.WaitFor(60s));
    CHECK(replay.Ending() == (signal == 0 ? "exited with 0" : signal == SIGKILL ? "killed by signal 9 (Killed)" : "exited with 130"));
    node.CheckUntouched(offloaded);
  }
}

TEST_CASE("kvctl replay: a node's kvmd without room for the pools is refused, and keeps its own", "[integration]") {
  BusyNode node("1024");
  node.Settle();
  const std::int64_t offloaded = node.Offloaded();
  const Sandbox::Output output = node.sandbox.Run("replay --workload chat --workers 3 --pool-blocks 400 --socket " + node.kvmd.socket());
  CHECK(output.code == 3);
  CHECK(output.out.empty());
  CHECK(output.err.find("it would evict the node's own; take fewer --pool-blocks, or --private") != std::string::npos);
  node.CheckUntouched(offloaded);
}

TEST_CASE("kvctl replay: a kvmd that is restarted when it begins costs it nothing", "[integration]") {
  const KvmdProcess kvmd;
  const Sandbox sandbox;
  // Stands for the kvmd that ends: it closes the first connection, and its successor has its place.
  const std::string path = sandbox.path() / "node.sock";
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE(path.size() < sizeof(address.sun_path));
  path.copy(address.sun_path, path.size());
  REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  REQUIRE(::listen(listener.get(), 1) == 0);
  std::thread ending([&] {
    ::close(::accept(listener.get(), nullptr, nullptr));
    std::filesystem::create_symlink(kvmd.socket(), path + ".new");
    std::filesystem::rename(path + ".new", path);
  });
  const Sandbox::Output output = sandbox.Run(
      "replay --workload chat --requests 20 --workers 1 --pool-blocks 200 --block-bytes 64 --backend host --timeout-ms 60000 "
      "--socket " +
      path);
  ending.join();
  INFO(output.err);
  CHECK(output.code == 0);
}

TEST_CASE("kvctl replay: without a kvmd it ends at once", "[integration]") {
  const Sandbox sandbox;
  const Sandbox::Output output = sandbox.Run(
      "replay --workload chat --requests 20 --workers 1 --pool-blocks 200 --block-bytes 64 --backend host --timeout-ms 600000 "
      "--socket " +
      (sandbox.path() / "nothing.sock").string());
  CHECK(output.code == 2);
  CHECK(output.err.find("can't reach kvmd") != std::string::npos);
}
