// How much memory this process may have: the machine's answer, the least of all answers, and
// allocating by it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "proto/base/memory_room.h"
#include "proto/shm/sealed_memory.h"
#include "tests/catch.h"
#include "tests/support/process/fork.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMib = std::uint64_t{1} << 20, kGib = std::uint64_t{1} << 30;
constexpr InstalledMemory kInstalled{16 * kGib, 3 * kGib};

void Write(const TempDir& root, const std::string& path, const std::string& text) {
  fs::create_directories((root.path() / path).parent_path());
  std::ofstream(root.path() / path) << text;
}

void WriteNode(const TempDir& root, int node, std::uint64_t total_mib, std::uint64_t free_mib, std::uint64_t inactive_file_mib) {
  const std::string name = "Node " + std::to_string(node) + " ";
  const auto line = [&](const std::string& field, std::uint64_t mib) {
    return name + field + ":  " + std::to_string(mib * 1024) + " kB\n";
  };
  Write(root, "sys/devices/system/node/node" + std::to_string(node) + "/meminfo",
        line("MemTotal", total_mib) + line("MemFree", free_mib) + line("Active(file)", 0) + line("Inactive(file)", inactive_file_mib) +
            line("Shmem", 500));
}

std::string Seen(const TempDir& root) {
  const MemoryLevel machine = ReadMachineMemory(kInstalled, root.path().string());
  return std::to_string(machine.limit_bytes / kMib) + "/" + std::to_string(machine.available_bytes / kMib);
}

TEST_CASE("Machine memory: what is available is what the kernel says", "[unit]") {
  TempDir root;
  Write(root, "proc/meminfo", "MemTotal: 1 kB\nMemFree: 2 kB\nMemAvailable:    5242880 kB\n");
  CHECK(Seen(root) == "16384/5120");
}

TEST_CASE("Machine memory: without /proc/meminfo there still is an answer", "[unit]") {
  TempDir root;
  SECTION("from the nodes: free memory and file cache") {
    Write(root, "sys/devices/system/node/has_memory", "0-1\n");
    WriteNode(root, 0, 8192, 1000, 300);
    WriteNode(root, 1, 8192, 500, 200);
    CHECK(Seen(root) == "16384/2000");
  }
  SECTION("from sysinfo: free memory") { CHECK(Seen(root) == "16384/3072"); }
  SECTION("a meminfo without the field") {
    Write(root, "proc/meminfo", "MemTotal: 1 kB\n");
    CHECK(Seen(root) == "16384/3072");
  }
}

TEST_CASE("Machine memory: a cpuset that gives some nodes gives their memory", "[unit]") {
  TempDir root;
  Write(root, "proc/meminfo", "MemAvailable:    5242880 kB\n");
  Write(root, "sys/devices/system/node/has_memory", "0-1\n");
  WriteNode(root, 0, 8192, 1000, 300);
  WriteNode(root, 1, 8192, 4000, 0);
  Write(root, "proc/self/status", "Name:\tx\nMems_allowed:\t1\nMems_allowed_list:\t0\nx:\t1\n");
  CHECK(Seen(root) == "8192/1300");
  Write(root, "proc/self/status", "Name:\tx\nMems_allowed_list:\t0-3\n");
  CHECK(Seen(root) == "16384/5120");
}

TEST_CASE("Machine memory: this machine has some", "[unit]") {
  const Result<InstalledMemory> installed = ReadInstalledMemory();
  KVM_REQUIRE_OK(installed);
  const MemoryLevel machine = ReadMachineMemory(*installed);
  CHECK(machine.limit_bytes > 0);
  CHECK(machine.available_bytes <= machine.limit_bytes);
  CHECK(machine.available_bytes > 0);
}

// A machine with two groups: the outer one is smaller, the inner one fuller.
TempDir& WithGroups(TempDir& root) {
  Write(root, "proc/meminfo", "MemAvailable:    5242880 kB\n");
  Write(root, "proc/self/cgroup", "0::/outer/inner\n");
  Write(root, "proc/self/mountinfo", "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
  Write(root, "sys/fs/cgroup/cgroup.procs", "");
  for (const auto& [group, limit, used] : {std::tuple("outer", 160, 40), std::tuple("outer/inner", 320, 290)}) {
    const std::string path = std::string("sys/fs/cgroup/") + group;
    Write(root, path + "/cgroup.procs", "");
    Write(root, path + "/memory.max", std::to_string(limit * kMib));
    Write(root, path + "/memory.high", "max");
    Write(root, path + "/memory.current", std::to_string(used * kMib));
  }
  return root;
}

TEST_CASE("Memory room: the least of machine and groups, less what is in use and a spare part", "[unit]") {
  TempDir root;
  const Result<MemoryRoom> room = MemoryRoom::ReadFrom(WithGroups(root).path().string(), kInstalled);
  KVM_REQUIRE_OK(room);
  CHECK(room->smallest().limit_bytes == 160 * kMib);
  CHECK(room->fullest().limit_bytes == 320 * kMib);
  CHECK(room->bytes() == 10 * kMib);  // 30 left, a 16th of 320 spare
  KVM_REQUIRE_OK(room->Check(10 * kMib, "a table"));
  KVM_CHECK_ERROR(room->Check(10 * kMib + 1, "a table"), Errc::kResourceExhausted,
                  "no memory for a table: 10 MiB are needed, 30 MiB of the 320 MiB of control group /sys/fs/cgroup/outer/inner");
}

TEST_CASE("Memory room: without groups it is the room of the machine", "[unit]") {
  TempDir root;
  Write(root, "proc/meminfo", "MemAvailable:    5242880 kB\n");
  Write(root, "proc/self/mountinfo", "");
  const Result<MemoryRoom> room = MemoryRoom::ReadFrom(root.path().string(), kInstalled);
  KVM_REQUIRE_OK(room);
  CHECK(room->smallest().limit_bytes == 16 * kGib);
  CHECK(room->bytes() == 5 * kGib - 128 * kMib);
}

TEST_CASE("Memory room: if a limit can't be determined, there is no room", "[unit]") {
  TempDir root;
  WithGroups(root);
  Write(root, "sys/fs/cgroup/outer/memory.max", "?");
  KVM_CHECK_ERROR(MemoryRoom::ReadFrom(root.path().string(), kInstalled), Errc::kSystem, "/sys/fs/cgroup/outer/memory.max");
}

TEST_CASE("Memory room: a memfd is allocated whole, or the error names the figures", "[unit]") {
  const UniqueFd fd(::memfd_create("test", MFD_CLOEXEC));
  REQUIRE(fd);
  REQUIRE(::ftruncate(fd.get(), 5 * static_cast<off_t>(kMib)) == 0);
  KVM_REQUIRE_OK(AllocateFile(fd.get(), 0, 5 * kMib, "a test"));
  struct stat info {};
  REQUIRE(::fstat(fd.get(), &info) == 0);
  CHECK(static_cast<std::uint64_t>(info.st_blocks) * 512 == 5 * kMib);
  KVM_CHECK_ERROR(AllocateFile(fd.get(), 5 * kMib, std::uint64_t{1} << 50, "a test"), Errc::kResourceExhausted, "a test");
  KVM_CHECK_ERROR(CheckMachineRoom(std::uint64_t{1} << 50, "a test"), Errc::kResourceExhausted, "this machine has");
}

TEST_CASE("Memory room: a limit of file sizes is an error, not a signal", "[unit]") {
  const ChildEnd end = RunInChild([] {
    const rlimit limit{kMib, kMib};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    const Result<OwnedMemory> made = OwnedMemory::Create("test", 2 * kMib);
    if (made || made.error().message.find("RLIMIT_FSIZE") == std::string::npos) return 2;
    const Result<UniqueFd> granted = CreateGrantable("test", 2 * kMib);
    if (granted || granted.error().message.find("RLIMIT_FSIZE") == std::string::npos) return 3;
    return OwnedMemory::Create("test", kMib) ? 0 : 4;
  });
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 0);
}

}  // namespace
}  // namespace kvm::test
