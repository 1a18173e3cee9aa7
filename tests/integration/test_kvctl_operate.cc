// The commands with which an operator decides: hot, drain, verify, config check, support-bundle.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>

#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace kvm::test;
using namespace std::chrono_literals;

// With 8 blocks published.
std::unique_ptr<Worker> Publisher(const KvmdProcess& kvmd) {
  auto worker = Start(kvmd, "publisher");
  worker->Publish("a:8", 0);
  KVM_REQUIRE_OK(worker->Flush());
  return worker;
}

boost::json::array Array(const boost::json::value& value, const char* name) { return value.as_object().at(name).as_array(); }

}  // namespace

TEST_CASE("kvctl hot: prefixes by use, with length, model and where they are", "[integration]") {
  KvmdProcess kvmd;
  auto publisher = Publisher(kvmd);
  publisher->Publish("a:4,b:2", 8);
  KVM_REQUIRE_OK(publisher->Flush());
  auto importer = Start(kvmd, "importer");
  const Sandbox sandbox;
  CHECK(sandbox.Run("hot --socket " + kvmd.socket()).out.find("no imports were reported") != std::string::npos);
  for (int i = 0; i < 3; ++i) REQUIRE(importer->FindAndImport("a:8", 0).valid == 8);
  REQUIRE(importer->FindAndImport("a:4,b:2", 20).valid == 6);
  boost::json::value hot;
  REQUIRE(Eventually([&] {
    hot = sandbox.Run("hot --json --socket " + kvmd.socket()).Json();
    return Array(hot, "prefixes").size() == 3;
  }));
  const boost::json::array prefixes = Array(hot, "prefixes");
  // The 4 blocks that both share, then each of them.
  CHECK(Number(prefixes[0], "uses") == 4);
  CHECK(Number(prefixes[0], "blocks") == 4);
  CHECK(Number(prefixes[0], "tokens") == 16);
  CHECK(Number(prefixes[0], "branches") == 2);
  CHECK(Text(prefixes[0], "key") == importer->Keys("a:4").back().ToHex());
  CHECK(Number(prefixes[1], "uses") == 3);
  CHECK(Text(prefixes[1], "key") == importer->Keys("a:8").back().ToHex());
  CHECK(Text(prefixes[1], "model_id") == importer->model().spec.model_id);
  CHECK(Number(prefixes[1], "worker_replicas") == 1);
  const auto text = sandbox.Run("hot --limit 1 --socket " + kvmd.socket());
  CHECK(text.code == 0);
  CHECK(std::count(text.out.begin(), text.out.end(), '\n') == 2);
  CHECK(text.out.find(importer->Keys("a:4").back().ToHex()) != text.out.npos);
}

TEST_CASE("kvctl cache: who fills the host cache, by worker, user, model and domain, also after a worker's end", "[integration]") {
  KvmdProcess kvmd({"--host-cache", "16M", "--host-cache-slab", "1M"});
  const Sandbox sandbox;
  const std::string command = "cache --socket " + kvmd.socket();
  CHECK(sandbox.Run(command).out == "0 B of 16 MiB are allocated\n");
  auto first = Publisher(kvmd);
  auto second = Start(kvmd, "second");
  second->Publish("b:3", 0);
  KVM_REQUIRE_OK(second->Flush());
  boost::json::value said;
  const auto fillers = [&](const std::string& options) {
    said = sandbox.Run(command + " --json" + options).Json();
    return Array(said, "fillers");
  };
  const auto blocks_of = [&](const boost::json::array& lines, const std::string& worker) -> std::int64_t {
    for (const boost::json::value& line : lines) {
      if (line.as_object().at("worker").is_string() && Text(line, "worker") == worker) return Number(line, "blocks");
    }
    return 0;
  };
  const bool filled = Eventually([&] {
    const boost::json::array lines = fillers("");
    return blocks_of(lines, "publisher") == 8 && blocks_of(lines, "second") == 3;
  });
  INFO(sandbox.Run(command).out);
  REQUIRE(filled);
  CHECK(Number(said, "max_bytes") == 16 << 20);
  for (const boost::json::value& line : Array(said, "fillers")) {
    CHECK(Text(line, "model_id") == first->model().spec.model_id);
    CHECK(Number(line, "pid") > 0);
    CHECK(Number(line, "uid") == static_cast<std::int64_t>(::geteuid()));
    CHECK(Number(line, "used_bytes") == Number(line, "blocks") * static_cast<std::int64_t>(first->region().block_bytes()));
    CHECK(Number(line, "bytes") >= Number(line, "used_bytes"));
  }
  for (const char* by : {"user", "model", "domain"}) {
    const boost::json::array lines = fillers(std::string(" --by ") + by);
    INFO(by);
    REQUIRE(lines.size() == 1);
    CHECK(Number(lines[0], "blocks") == 11);
    CHECK_FALSE(lines[0].as_object().contains("worker"));
    CHECK(lines[0].as_object().contains("uid") == (std::string(by) == "user"));
    CHECK(lines[0].as_object().contains("model_id") == (std::string(by) == "model"));
  }
  CHECK(sandbox.Run(command + " --by colour").code == 1);
  second.reset();
  REQUIRE(Eventually([&] {
    const boost::json::array lines = fillers("");
    return blocks_of(lines, "publisher") == 8 &&
           std::any_of(lines.begin(), lines.end(), [](const boost::json::value& line) { return line.as_object().at("worker").is_null(); });
  }));
  const auto text = sandbox.Run(command);
  INFO(text.out);
  CHECK(text.out.find("publisher") != text.out.npos);
  KvmdProcess without;
  CHECK(sandbox.Run("cache --socket " + without.socket()).out == "this kvmd has no host cache (--host-cache)\n");
}

TEST_CASE("kvctl drain: workers alone lose nothing, a lease and a host cache without copies are named", "[integration]") {
  KvmdProcess kvmd({"--host-cache", "16M"});
  const Sandbox sandbox;
  const std::string drain = "drain --socket " + kvmd.socket();
  auto worker = Start(kvmd, "publisher");
  const auto before = sandbox.Run(drain);
  INFO(before.out << before.err);
  CHECK(before.code == 0);
  CHECK(before.out.find("a restart loses nothing now") == 0);
  worker->Publish("a:8", 0);
  KVM_REQUIRE_OK(worker->Flush());
  boost::json::value said;
  REQUIRE(Eventually([&] {
    said = sandbox.Run(drain + " --json").Json();
    return !Array(said, "losses").empty() && Number(Array(said, "losses")[0], "blocks") == 8;
  }));
  CHECK_FALSE(said.as_object().at("loses_nothing").as_bool());
  CHECK_FALSE(said.as_object().at("keeps_state").as_bool());
  CHECK(Number(said, "workers") == 1);
  CHECK(Text(Array(said, "losses")[0], "kind") == "host_cache");
  Result<Lease> lease = worker->client().AcquireLease(worker->Find("a:8"), 60s, After(5s));
  KVM_REQUIRE_OK(lease);
  const auto after = sandbox.Run(drain);
  INFO(after.out);
  CHECK(after.code == 3);
  CHECK(after.out.find("lease") != after.out.npos);
  CHECK(after.out.find("publisher") != after.out.npos);
}

TEST_CASE("kvctl verify: sound blocks are read twice and compared, and nothing is left of it", "[integration]") {
  KvmdProcess kvmd;
  auto worker = Publisher(kvmd);
  const Sandbox sandbox;
  const auto json = sandbox.Run("verify --pause-ms 0 --json --socket " + kvmd.socket());
  INFO(json.out << json.err);
  REQUIRE(json.code == 0);
  CHECK(Number(json.Json(), "sampled") == 8);
  CHECK(Number(json.Json(), "compared") == 8);
  CHECK(json.Json().as_object().at("sound").as_bool());
  const auto sample = sandbox.Run("verify --pause-ms 0 --sample 3 --region publisher --json --socket " + kvmd.socket());
  CHECK(Number(sample.Json(), "compared") == 3);
  CHECK(Number(sample.Json(), "published") == 8);
  CHECK(sandbox.Run("verify --region none --socket " + kvmd.socket()).code == 1);
  const auto regions = sandbox.Run("regions --json --socket " + kvmd.socket());
  CHECK(regions.out.find("kvctl-verify") == regions.out.npos);
}

TEST_CASE("kvctl verify: a block that its owner writes without withdrawing it is unstable, and named", "[integration]") {
  KvmdProcess kvmd;
  auto worker = Publisher(kvmd);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    std::byte* const bytes = worker->region().BlockData(5);
    for (std::uint64_t value = 0; !stop; ++value) std::memcpy(bytes, &value, sizeof(value));
  });
  const Sandbox sandbox;
  const auto json = sandbox.Run("verify --pause-ms 100 --json --socket " + kvmd.socket());
  const auto text = sandbox.Run("verify --pause-ms 100 --socket " + kvmd.socket());
  stop = true;
  writer.join();
  INFO(json.out << json.err);
  CHECK(json.code == 3);
  CHECK(Number(json.Json(), "unstable") == 1);
  const boost::json::value wrong = Array(json.Json(), "wrong_blocks").at(0);
  CHECK(Number(wrong, "block") == 5);
  CHECK(Text(wrong, "key") == worker->Keys("a:8")[5].ToHex());
  CHECK(text.code == 3);
  CHECK(text.out.find(worker->Keys("a:8")[5].ToHex()) != text.out.npos);
}

TEST_CASE("kvctl config check: names every fault with its line, and needs no running kvmd", "[integration]") {
  const Sandbox sandbox;
  const std::string bad = sandbox.Write("bad.toml", "max-entries = 5\nmax-models = 3\nmax-entris = 7\n");
  const auto text = sandbox.Run("config check " + bad);
  CHECK(text.code == 1);
  CHECK(text.out.find(bad + ":1: max-entries: ") != text.out.npos);
  CHECK(text.out.find(bad + ":3: max-entris: ") != text.out.npos);
  const auto json = sandbox.Run("config check --json " + bad);
  CHECK(json.code == 1);
  CHECK_FALSE(json.Json().as_object().at("valid").as_bool());
  REQUIRE(Array(json.Json(), "faults").size() == 2);
  CHECK(Number(Array(json.Json(), "faults")[1], "line") == 3);
  CHECK(Text(Array(json.Json(), "faults")[1], "option") == "max-entris");
  const auto good = sandbox.Run("config check --json " + sandbox.Write("good.toml", "max-models = 3\n").string());
  CHECK(good.code == 0);
  CHECK(good.Json().as_object().at("valid").as_bool());
  CHECK(sandbox.Run("config check /nonexistent.toml").code == 1);
  CHECK(sandbox.Run("config check --kvmd /nonexistent " + bad).err.find("/nonexistent") != std::string::npos);
}

TEST_CASE("kvctl support-bundle: one tar with status, checks, configuration and limits, and no block's bytes", "[integration]") {
  KvmdProcess kvmd;
  auto worker = Publisher(kvmd);
  // What must not be in it.
  const char secret[] = "bytes-of-a-block";
  std::memcpy(worker->region().BlockData(3), secret, sizeof(secret));
  const Sandbox sandbox;
  const std::string config = sandbox.Write("kvmd.toml", "max-models = 3\n");
  const std::string tar = sandbox.path() / "bundle.tar";
  const auto json = sandbox.Run("support-bundle --json --output " + tar + " --config " + config + " --socket " + kvmd.socket());
  INFO(json.out << json.err);
  REQUIRE(json.code == 0);
  CHECK(Text(json.Json(), "output") == tar);
  CHECK(sandbox.NothingLeft());
  struct stat info {};
  REQUIRE(::stat(tar.c_str(), &info) == 0);
  CHECK((info.st_mode & 077) == 0);
  REQUIRE(::system(("tar -C " + sandbox.path().string() + " -xf " + tar).c_str()) == 0);
  const std::filesystem::path folder = sandbox.path() / Text(json.Json(), "folder");
  for (const char* file : {"status.json", "doctor.json", "clients.json", "hot.json", "kvmd.toml", "version.txt", "kvmd-version.txt",
                           "kvmd-limits.txt", "config-check.txt", "uname.txt"}) {
    INFO(file);
    CHECK_FALSE(ReadFile(folder / file).empty());
  }
  CHECK(ReadFile(folder / "status.json").find("\"pid\"") != std::string::npos);
  CHECK(ReadFile(folder / "config-check.txt").find("configuration is good") != std::string::npos);
  CHECK(ReadFile(tar).find(secret) == std::string::npos);
}

TEST_CASE("kvctl support-bundle: has the logs of kvmd, the exporter and every kvmd-mesh", "[integration]") {
  const Sandbox sandbox;
  // In place of the journal: what it was asked for.
  const std::filesystem::path programs = sandbox.path() / "programs";
  std::filesystem::create_directory(programs);
  std::filesystem::permissions(sandbox.Write("programs/journalctl", "#!/bin/sh\necho \"$@\"\n"), std::filesystem::perms::owner_all);
  const std::string tar = sandbox.path() / "bundle.tar";
  const auto json =
      sandbox.Run("support-bundle --json --output " + tar + " --socket /nonexistent/kvmd.sock", "PATH=" + programs.string() + ":$PATH");
  REQUIRE(json.code == 0);
  REQUIRE(::system(("tar -C " + sandbox.path().string() + " -xf " + tar).c_str()) == 0);
  const std::filesystem::path folder = sandbox.path() / Text(json.Json(), "folder");
  CHECK(ReadFile(folder / "events.txt").find("--unit=kvmd ") == 0);
  CHECK(ReadFile(folder / "exporter-events.txt").find("--unit=kvmd-exporter ") == 0);
  CHECK(ReadFile(folder / "mesh-events.txt").find("--unit=kvmd-mesh@* ") == 0);
  CHECK_FALSE(ReadFile(folder / "mesh-status.json").empty());
}

TEST_CASE("kvctl support-bundle: without a kvmd it says so in the files, and is written nevertheless", "[integration]") {
  const Sandbox sandbox;
  const std::string tar = sandbox.path() / "bundle.tar";
  const auto text = sandbox.Run("support-bundle --output " + tar + " --config /nonexistent.toml --socket /nonexistent/kvmd.sock");
  INFO(text.out << text.err);
  CHECK(text.code == 0);
  CHECK(text.out.find("without kvmd.toml: /nonexistent.toml can't be read") != text.out.npos);
  CHECK(ReadFile(tar).find("can't reach kvmd") != std::string::npos);
  CHECK(sandbox.Run("support-bundle --output /nonexistent/bundle.tar --socket /nonexistent/kvmd.sock").code == 1);
}

TEST_CASE("kvctl doctor: says why most lookups miss", "[integration]") {
  KvmdProcess kvmd;
  auto worker = Publisher(kvmd);
  for (int i = 0; i < 5; ++i) worker->Find("a:8,b:1");
  const Sandbox sandbox;
  CHECK(Eventually([&] {
    const auto said = sandbox.Run("doctor --socket " + kvmd.socket());
    return said.out.find("5 of 5 lookups ended before their last block") != said.out.npos &&
           said.out.find("the next block is not published") != said.out.npos;
  }));
}
