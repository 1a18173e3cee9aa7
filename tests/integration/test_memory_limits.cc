// Real control groups: kvmd and workers are refused memory that their group lacks, and no process
// is killed.
#include <grp.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>

#include "proto/base/memory_room.h"
#include "tests/catch.h"
#include "tests/support/data/model_specs.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/wire_client.h"
#include "tests/support/process/child_main.h"
#include "tests/support/process/memory_group.h"
#include "tests/support/process/sanitized.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::ChildProcess;
using test::KvmdProcess;
using test::MemoryGroup;
using test::WireClient;
using test::WireRegion;

constexpr std::uint64_t kMib = std::uint64_t{1} << 20;
constexpr std::chrono::seconds kPatience{30};

// A worker in a group: SOCKET NAME BLOCKS [UID [BLOCK-BYTES]], of 1 MiB each. Answers what became
// of its start, and lives until its input ends.
const test::ChildMain kPodWorker("pod-worker", [](const std::vector<std::string>& arguments) {
  const auto uid = arguments.size() > 3 ? static_cast<uid_t>(std::stoul(arguments.at(3))) : 0;
  if (uid != 0 && (::setgroups(0, nullptr) != 0 || ::setgid(uid) != 0 || ::setuid(uid) != 0)) return 1;
  test::WorkerOptions options;
  options.socket = arguments.at(0);
  options.name = arguments.at(1);
  options.blocks = static_cast<std::uint32_t>(std::stoul(arguments.at(2)));
  options.block_bytes = arguments.size() > 4 ? std::stoull(arguments.at(4)) : kMib;
  Result<std::unique_ptr<test::Worker>> worker = test::Worker::Start(options);
  std::cout << (worker ? "ok" : "error " + worker.error().ToString()) << std::endl;
  if (worker) static_cast<void>((*worker)->Publish("a:2", 0));
  for (std::string line; std::getline(std::cin, line);) continue;
  return 0;
});

// Keeps so much shared memory in use: MIB.
const test::ChildMain kUser("memory-user", [](const std::vector<std::string>& arguments) {
  const Result<OwnedMemory> memory = OwnedMemory::Create("test:used", std::stoull(arguments.at(0)) * kMib);
  std::cout << (memory ? "ok" : "error " + memory.error().ToString()) << std::endl;
  for (std::string line; std::getline(std::cin, line);) continue;
  return 0;
});

std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::string SelfPath() {
  char path[4096];
  const ssize_t size = ::readlink("/proc/self/exe", path, sizeof(path));
  return {path, static_cast<std::size_t>(size)};
}

// What a worker says of its start; "" if it died.
std::string Started(ChildProcess& worker) { return worker.ReadLine(kPatience).value_or(""); }

ChildProcess PodWorker(const MemoryGroup& group, const KvmdProcess& kvmd, const std::string& name, std::uint64_t mib) {
  return ChildProcess(group.Enter() +
                      std::vector<std::string>{SelfPath(), "--child", "pod-worker", kvmd.socket(), name, std::to_string(mib)});
}

void CheckHas(const std::string& text, const std::string& part) {
  INFO(text);
  CHECK(text.find(part) != std::string::npos);
}

// How kvmd sees its group: as the machine does; from a namespace of its own, with the machine's
// mounts; with its own.
enum class Sight { kWhole, kNamespace, kOwnMount };

std::vector<std::string> Into(Sight sight) {
  switch (sight) {
    case Sight::kWhole: return {};
    case Sight::kNamespace: return {"/usr/bin/unshare", "--cgroup"};
    case Sight::kOwnMount:
      return {"/usr/bin/unshare",
              "--cgroup",
              "--mount",
              "/bin/sh",
              "-c",
              "if [ -e /sys/fs/cgroup/memory/cgroup.procs ]; "
              "then umount /sys/fs/cgroup/memory && mount -t cgroup -o memory cgroup /sys/fs/cgroup/memory; "
              "else umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup; fi && exec \"$0\" \"$@\""};
  }
  return {};
}

TEST_CASE("Memory limits: a kvmd whose group has no room for a registry refuses its client and survives", "[integration]") {
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(60 * kMib, why);
  if (!group) KVM_SKIP(why);
  for (const Sight sight : {Sight::kWhole, Sight::kNamespace, Sight::kOwnMount}) {
    INFO("sight " << static_cast<int>(sight));
    KvmdProcess kvmd({"--max-entries", "1000000"}, group->Enter() + Into(sight));
    Result<WireClient> client = WireClient::Connect(kvmd.socket());
    KVM_REQUIRE_OK(client);
    KVM_CHECK_ERROR(client->Hello(), Errc::kResourceExhausted, "60 MiB of control group");
    CheckHas(kvmd.Log(), "domain_failed");
    CHECK(kvmd.running());
    CHECK(group->Killed() == 0);
    CHECK(kvmd.Stop().clean());
  }
}

TEST_CASE("Memory limits: the limit of the parent of kvmd's group counts", "[integration]") {
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(60 * kMib, why);
  if (!group) KVM_SKIP(why);
  KvmdProcess kvmd({"--max-entries", "1000000"}, group->Enter(group->AddInner("kvmd")));
  Result<WireClient> client = WireClient::Connect(kvmd.socket());
  KVM_REQUIRE_OK(client);
  KVM_CHECK_ERROR(client->Hello(), Errc::kResourceExhausted, "60 MiB of control group");
  CHECK(kvmd.running());
  CHECK(group->Killed() == 0);
}

TEST_CASE("Memory limits: another user's domain is refused, and the first user's still works", "[integration]") {
  if (::geteuid() != 0) KVM_SKIP("needs root, to connect as another user");
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(130 * kMib, why);
  if (!group) KVM_SKIP(why);
  KvmdProcess kvmd({"--max-entries", "1000000"}, group->Enter());
  std::filesystem::permissions(kvmd.dir().path(), std::filesystem::perms::all);
  test::RemoteWorker first({.socket = kvmd.socket(), .name = "first"});
  first.Publish("a:4", 0);
  ChildProcess second = ChildProcess::Self("pod-worker", {kvmd.socket(), "second", "1", "1234"});
  CheckHas(Started(second), "130 MiB of control group");
  CHECK(first.Find("a:4") == 4);
  first.Publish("b:4", 4);
  CHECK(kvmd.running());
  CHECK(group->Killed() == 0);
}

TEST_CASE("Memory limits: kvmd doesn't start with a host cache that its group has no memory for, and names both figures", "[integration]") {
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(200 * kMib, why);
  if (!group) KVM_SKIP(why);
  const test::TempDir dir;
  const auto start = [&](Sight sight, const std::string& size, const std::string& domains, const std::string& log) {
    ChildProcess kvmd(
        group->Enter() + Into(sight) +
            std::vector<std::string>{test::KvmdBinary(), "--socket", dir / "kvmd.sock", "--host-cache", size, "--max-domains", domains},
        dir / log);
    const std::optional<test::ProcessEnd> end = kvmd.Wait(kPatience);
    CHECK((end && end->signal == 0 && end->code == 1));
    std::ifstream file(dir / log);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  for (const Sight sight : {Sight::kWhole, Sight::kNamespace, Sight::kOwnMount}) {
    const std::string log = start(sight, "512M", "1", "alone" + std::to_string(static_cast<int>(sight)));
    CheckHas(log, "--host-cache: 512 MiB are asked for");
    CheckHas(log, "allows 200 MiB");
  }
  // Alone it would fit.
  CheckHas(start(Sight::kWhole, "100M", "2", "beside"), "beside 2 registries of 83 MiB");
  CHECK(group->Killed() == 0);
}

TEST_CASE("Memory limits: a host cache stops growing where its group is full", "[integration]") {
  if (test::kSanitized) KVM_SKIP("a sanitizer's own memory does not fit into this limit");
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(160 * kMib, why);
  if (!group) KVM_SKIP(why);
  // In small steps, and in one that is larger than what is left.
  const char* const slab = GENERATE("16M", "96M");
  KvmdProcess kvmd({"--max-entries", "10000", "--domain-mode", "node", "--host-cache", "96M", "--host-cache-slab", slab}, group->Enter());
  ChildProcess user(group->Enter() + std::vector<std::string>{SelfPath(), "--child", "memory-user", "90"});
  REQUIRE(Started(user) == "ok");
  test::RemoteWorker worker({.socket = kvmd.socket(), .name = "worker", .blocks = 96, .block_bytes = kMib});
  worker.Publish("a:96", 0);
  CHECK(test::Eventually([&] { return kvmd.Log().find("host_cache_not_grown") != std::string::npos; }));
  CheckHas(kvmd.Log(), "160 MiB of control group");
  CHECK(worker.Find("a:96") == 96);
  CHECK(kvmd.running());
  CHECK(user.running());
  CHECK(group->Killed() == 0);
}

TEST_CASE("Memory limits: a host cache leaves room for the registries that may come", "[integration]") {
  if (::geteuid() != 0) KVM_SKIP("needs root, to connect as another user");
  if (test::kSanitized) KVM_SKIP("a sanitizer's own memory does not fit into this limit");
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(250 * kMib, why);
  if (!group) KVM_SKIP(why);
  // A registry has 83 MiB: with both of them, what is in use and the spare part, the cache's one
  // slab does not fit.
  KvmdProcess kvmd({"--max-entries", "1000000", "--max-domains", "2", "--host-cache", "64M", "--host-cache-slab", "64M"}, group->Enter());
  std::filesystem::permissions(kvmd.dir().path(), std::filesystem::perms::all);
  ChildProcess user(group->Enter() + std::vector<std::string>{SelfPath(), "--child", "memory-user", "30"});
  REQUIRE(Started(user) == "ok");
  test::RemoteWorker first({.socket = kvmd.socket(), .name = "first", .blocks = 64, .block_bytes = kMib});
  first.Publish("a:8", 0);
  CHECK(test::Eventually([&] { return kvmd.Log().find("host_cache_not_grown") != std::string::npos; }));
  ChildProcess second = ChildProcess::Self("pod-worker", {kvmd.socket(), "second", "1", "1234"});
  CHECK(Started(second) == "ok");
  CHECK(group->Killed() == 0);
}

TEST_CASE("Memory limits: kvmd refuses a region whose index it could not keep", "[integration]") {
  if (test::kSanitized) KVM_SKIP("a sanitizer's own memory does not fit into this limit");
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(24 * kMib, why);
  if (!group) KVM_SKIP(why);
  KvmdProcess kvmd({"--max-entries", "1000"}, group->Enter());
  Result<WireClient> client = WireClient::Connect(kvmd.socket());
  KVM_REQUIRE_OK(client);
  KVM_REQUIRE_OK(client->Hello());
  const ModelSpec spec = test::LlamaSpec();
  KVM_REQUIRE_OK(client->DeclareModel(spec));
  WireRegion small("small", spec, 100, 16), large("large", spec, 8 << 20, 16);
  KVM_CHECK_ERROR(large.Register(*client), Errc::kResourceExhausted, "24 MiB of control group");
  KVM_REQUIRE_OK(small.Register(*client));
  CHECK(kvmd.running());
  CHECK(group->Killed() == 0);
}

TEST_CASE("Memory limits: a worker is refused a region that its group has no memory for, and survives", "[integration]") {
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(100 * kMib, why);
  if (!group) KVM_SKIP(why);
  KvmdProcess kvmd;
  ChildProcess worker = PodWorker(*group, kvmd, "large", 256);
  const std::string answer = Started(worker);
  CheckHas(answer, "256 MiB are needed");
  CheckHas(answer, "100 MiB of control group");
  CHECK(worker.running());
  CHECK(group->Killed() == 0);
}

TEST_CASE("Memory limits: the records that a worker keeps of its blocks count as well", "[integration]") {
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(300 * kMib, why);
  if (!group) KVM_SKIP(why);
  KvmdProcess kvmd;
  // Small blocks: notes are larger than what is noted.
  ChildProcess worker(group->Enter() +
                      std::vector<std::string>{SelfPath(), "--child", "pod-worker", kvmd.socket(), "small", "8000000", "0", "16"});
  const std::string answer = Started(worker);
  CheckHas(answer, "the records of region small");
  CheckHas(answer, "300 MiB of control group");
  CHECK(worker.running());
  CHECK(group->Killed() == 0);
}

TEST_CASE("Memory limits: workers of one group that start at the same time are refused, not killed", "[integration]") {
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(300 * kMib, why);
  if (!group) KVM_SKIP(why);
  KvmdProcess kvmd;
  std::vector<ChildProcess> workers;
  for (int i = 0; i < 4; ++i) workers.push_back(PodWorker(*group, kvmd, "worker-" + std::to_string(i), 100));
  int started = 0;
  for (ChildProcess& worker : workers) {
    const std::string answer = Started(worker);
    started += answer == "ok";
    if (answer != "ok") CheckHas(answer, "300 MiB of control group");
  }
  CHECK(started <= 2);
  CHECK(group->Killed() == 0);
}

TEST_CASE("Memory limits: a worker that replaces a dead one gets the dead one's memory", "[integration]") {
  const std::string next = GENERATE("pool", "pool-of-another-name");
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(180 * kMib, why);
  if (!group) KVM_SKIP(why);
  KvmdProcess kvmd;
  ChildProcess first = PodWorker(*group, kvmd, "pool", 100);
  REQUIRE(Started(first) == "ok");
  // An importer that has the dead one's memory mapped gives it back.
  test::RemoteWorker importer({.socket = kvmd.socket(), .name = "importer", .blocks = 4, .block_bytes = kMib});
  REQUIRE(test::Eventually([&] { return importer.Find("a:2") == 2; }));
  first.Kill();
  REQUIRE(test::Eventually([&] { return kvmd.Log().find("region_orphaned") != std::string::npos; }));
  REQUIRE(group->UsedBytes() > 100 * kMib);
  ChildProcess second = PodWorker(*group, kvmd, next, 100);
  CHECK(Started(second) == "ok");
  CHECK(group->Killed() == 0);
  CheckHas(kvmd.Log(), "region_reclaimed");
}

TEST_CASE("Memory limits: a dead worker's memory is freed before a new worker of its name allocates", "[integration]") {
  std::string why;
  const std::optional<MemoryGroup> group = MemoryGroup::Make(400 * kMib, why);
  if (!group) KVM_SKIP(why);
  KvmdProcess kvmd;
  ChildProcess first = PodWorker(*group, kvmd, "pool", 100);
  REQUIRE(Started(first) == "ok");
  first.Kill();
  REQUIRE(test::Eventually([&] { return kvmd.Log().find("region_orphaned") != std::string::npos; }));
  ChildProcess second = PodWorker(*group, kvmd, "pool", 100);
  CHECK(Started(second) == "ok");
  if (group->MostUsedBytes() == 0) KVM_SKIP("this kernel does not say how much a group has used at most");
  // There was room for both.
  CHECK(group->MostUsedBytes() > 100 * kMib);
  CHECK(group->MostUsedBytes() < 180 * kMib);
}

TEST_CASE("Memory limits: without /proc/meminfo kvmd still knows what the machine has", "[integration]") {
  if (::geteuid() != 0) KVM_SKIP("needs root, to mount a /proc");
  const test::TempDir dir;
  const std::vector<std::string> hidden{
      "/usr/bin/unshare",
      "--mount",
      "--propagation",
      "private",
      "/bin/sh",
      "-c",
      "mount -t proc -o subset=pid proc /proc && [ ! -e /proc/meminfo ] && exec \"$0\" \"$@\" || exit 77"};
  ChildProcess refused(hidden + std::vector<std::string>{test::KvmdBinary(), "--socket", dir / "kvmd.sock", "--host-cache", "900T"},
                       dir / "log");
  const std::optional<test::ProcessEnd> end = refused.Wait(kPatience);
  if (end && end->code == 77) KVM_SKIP("this kernel has no proc with subset=pid");
  CHECK((end && end->code == 1));
  std::ifstream file(dir / "log");
  CheckHas(std::string(std::istreambuf_iterator<char>(file), {}), "--host-cache: 943718400 MiB are asked for");
  KvmdProcess kvmd({"--max-domains", "1", "--host-cache", "64M"}, hidden);
  test::RemoteWorker worker({.socket = kvmd.socket(), .name = "worker"});
  worker.Publish("a:4", 0);
  CHECK(worker.Find("a:4") == 4);
}

}  // namespace
