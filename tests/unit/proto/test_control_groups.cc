// Memory limits of control groups, read from trees of files as kernels, containers and service
// managers lay them out.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "proto/base/control_groups.h"
#include "tests/catch.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMib = std::uint64_t{1} << 20;
const char* const kNoLimitV1 = "9223372036854771712\n";

std::string Mib(std::uint64_t count) { return std::to_string(count * kMib) + "\n"; }

// Another machine's files.
class Machine {
 public:
  void Write(const std::string& path, const std::string& text) const {
    const fs::path file = dir_.path() / path.substr(1);
    fs::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  void Groups(const std::string& text) const { Write("/proc/self/cgroup", text); }
  // Lines of mountinfo: root, mount point, type and options of the superblock.
  void Mount(const std::string& root, const std::string& point, const std::string& type, const std::string& options) {
    mounts_ += "30 20 0:2" + std::to_string(mounts_.size() % 10) + " " + root + " " + point + " rw,relatime shared:4 - " + type + " " +
               type + " " + options + "\n";
    Write("/proc/self/mountinfo", "20 1 8:1 / / rw - ext4 /dev/root rw\n" + mounts_);
  }
  void MountV2(const std::string& root = "/", const std::string& point = "/sys/fs/cgroup") {
    Mount(root, point, "cgroup2", "rw,nsdelegate");
  }
  void MountV1(const std::string& root = "/", const std::string& point = "/sys/fs/cgroup/memory",
               const std::string& options = "rw,memory") {
    Mount(root, point, "cgroup", options);
  }
  void GroupV2(const std::string& path, const std::string& max, std::uint64_t used_mib, const std::string& stat = "") const {
    Write(path + "/cgroup.procs", "");
    Write(path + "/memory.max", max);
    Write(path + "/memory.high", "max\n");
    Write(path + "/memory.current", Mib(used_mib));
    Write(path + "/memory.stat", stat);
  }
  void GroupV1(const std::string& path, const std::string& limit, std::uint64_t used_mib, const std::string& stat = "") const {
    Write(path + "/cgroup.procs", "");
    Write(path + "/memory.limit_in_bytes", limit);
    Write(path + "/memory.usage_in_bytes", Mib(used_mib));
    Write(path + "/memory.stat", stat);
  }
  Result<std::vector<MemoryLevel>> Read() const { return ReadControlGroups(dir_.path().string()); }
  // The only limit there is: "limit/available" in MiB; "none"; else the error.
  std::string Only() const {
    const Result<std::vector<MemoryLevel>> levels = Read();
    if (!levels) return levels.error().ToString();
    if (levels->empty()) return "none";
    if (levels->size() > 1) return std::to_string(levels->size()) + " limits";
    return std::to_string(levels->front().limit_bytes / kMib) + "/" + std::to_string(levels->front().available_bytes / kMib);
  }
  const TempDir& dir() const { return dir_; }

 private:
  TempDir dir_;
  std::string mounts_;
};

void CheckHas(const std::string& text, const std::string& part) {
  INFO(text);
  CHECK(text.find(part) != std::string::npos);
}

TEST_CASE("Control groups v2: each level up to the root counts, the innermost first", "[unit]") {
  Machine machine;
  machine.Groups("0::/system.slice/kvmd.service\n");
  machine.MountV2();
  machine.Write("/sys/fs/cgroup/cgroup.procs", "");  // the root has no limit
  machine.GroupV2("/sys/fs/cgroup/system.slice", Mib(100), 90);
  machine.GroupV2("/sys/fs/cgroup/system.slice/kvmd.service", Mib(200), 50);
  const Result<std::vector<MemoryLevel>> levels = machine.Read();
  KVM_REQUIRE_OK(levels);
  REQUIRE(levels->size() == 2);
  CHECK(levels->at(0).limit_bytes == 200 * kMib);
  CHECK(levels->at(0).available_bytes == 150 * kMib);
  CheckHas(levels->at(0).name, "/sys/fs/cgroup/system.slice/kvmd.service");
  CHECK(levels->at(1).limit_bytes == 100 * kMib);
  CHECK(levels->at(1).available_bytes == 10 * kMib);
}

TEST_CASE("Control groups v2: a container that sees its group as the root has the root's limit", "[unit]") {
  Machine machine;
  machine.Groups("0::/\n");
  machine.MountV2();
  machine.GroupV2("/sys/fs/cgroup", Mib(200), 20);
  CHECK(machine.Only() == "200/180");
}

TEST_CASE("Control groups v2: a mount that begins at a group shows that group and those below", "[unit]") {
  Machine machine;
  machine.MountV2("/docker/abc");
  machine.GroupV2("/sys/fs/cgroup", Mib(300), 100);
  machine.GroupV2("/sys/fs/cgroup/inner", "max\n", 10);
  machine.Groups("0::/docker/abc/inner\n");
  CHECK(machine.Only() == "300/200");
  machine.Groups("0::/docker/abc\n");
  CHECK(machine.Only() == "300/200");
  machine.Groups("0::/docker/abcdef\n");  // another container
  CheckHas(machine.Only(), "/docker/abcdef can't be told");
}

TEST_CASE("Control groups v2: of several mounts the one that shows most is taken", "[unit]") {
  Machine machine;
  machine.Groups("0::/pod/kvmd\n");
  machine.MountV2("/pod/kvmd", "/mnt/own");
  machine.MountV2("/", "/sys/fs/cgroup");
  machine.GroupV2("/mnt/own", "max\n", 10);
  machine.GroupV2("/sys/fs/cgroup/pod", Mib(64), 10);
  machine.GroupV2("/sys/fs/cgroup/pod/kvmd", "max\n", 10);
  CHECK(machine.Only() == "64/54");
}

TEST_CASE("Control groups v2: a namespace without mounts of its own is found by the process in it", "[unit]") {
  Machine machine;
  machine.MountV2("/../..");
  machine.GroupV2("/sys/fs/cgroup/a", "max\n", 1);
  machine.GroupV2("/sys/fs/cgroup/a/b", Mib(900), 1);
  machine.GroupV2("/sys/fs/cgroup/c", Mib(100), 1);
  machine.GroupV2("/sys/fs/cgroup/c/d", "max\n", 1);
  machine.GroupV2("/sys/fs/cgroup/c/d/inner", Mib(50), 1);
  SECTION("in the namespace's root") {
    machine.Groups("0::/\n");
    machine.Write("/sys/fs/cgroup/c/d/cgroup.procs", "1\n" + std::to_string(::getpid()) + "\n");
    CHECK(machine.Only() == "100/99");
  }
  SECTION("below it") {
    machine.Groups("0::/inner\n");
    machine.Write("/sys/fs/cgroup/c/d/inner/cgroup.procs", std::to_string(::getpid()) + "\n");
    CHECK(machine.Only() == "2 limits");
  }
  SECTION("nowhere") {
    machine.Groups("0::/\n");
    CheckHas(machine.Only(), "can't be told");
  }
  SECTION("above it") {
    machine.Groups("0::/../x\n");
    machine.GroupV2("/sys/fs/cgroup/c/x", Mib(70), 1);
    machine.Write("/sys/fs/cgroup/c/x/cgroup.procs", std::to_string(::getpid()) + "\n");
    CHECK(machine.Only() == "2 limits");
  }
}

TEST_CASE("Control groups v2: a group outside of the mount is not searched for beside the mount", "[unit]") {
  Machine machine;
  machine.Groups("0::/../other\n");
  machine.MountV2();
  machine.GroupV2("/sys/fs/cgroup", "max\n", 1);
  machine.GroupV2("/sys/fs/other", Mib(5000), 1);  // what the path would lead to
  CheckHas(machine.Only(), "/../other can't be told");
}

TEST_CASE("Control groups v2: memory.high is a limit as well", "[unit]") {
  Machine machine;
  machine.Groups("0::/\n");
  machine.MountV2();
  machine.GroupV2("/sys/fs/cgroup", "max\n", 20);
  machine.Write("/sys/fs/cgroup/memory.high", Mib(80));
  CHECK(machine.Only() == "80/60");
  machine.Write("/sys/fs/cgroup/memory.max", Mib(70));
  CHECK(machine.Only() == "70/50");
}

TEST_CASE("Control groups v2: where the memory controller is not in charge there is no limit", "[unit]") {
  Machine machine;
  machine.Groups("0::/user.slice/shell\n");
  machine.MountV2();
  machine.Write("/sys/fs/cgroup/cgroup.procs", "");
  machine.Write("/sys/fs/cgroup/user.slice/cgroup.procs", "");
  machine.Write("/sys/fs/cgroup/user.slice/shell/cgroup.procs", "");
  CHECK(machine.Only() == "none");
  machine.GroupV2("/sys/fs/cgroup/user.slice", Mib(40), 30);  // it may be in charge further up
  CHECK(machine.Only() == "40/10");
}

TEST_CASE("Control groups: file cache is available, shared memory is not", "[unit]") {
  Machine machine;
  SECTION("v2") {
    machine.Groups("0::/\n");
    machine.MountV2();
    machine.GroupV2("/sys/fs/cgroup", Mib(100), 90,
                    "anon 1\nfile 62914560\nshmem 31457280\ninactive_anon 31457280\ninactive_file 20971520\nactive_file 8388608\n"
                    "file_dirty 1048576\nfile_writeback 1048576\nslab_reclaimable 4194304\n");
  }
  SECTION("v1") {
    machine.Groups("3:memory:/\n");
    machine.MountV1();
    machine.GroupV1("/sys/fs/cgroup/memory", Mib(100), 90,
                    "cache 1\ninactive_file 5\ndirty 5\ntotal_dirty 1048576\ntotal_writeback 1048576\ntotal_shmem 31457280\n"
                    "total_inactive_file 23068672\ntotal_active_file 8388608\n");
  }
  // 90 in use, of which 20 + 4 (half of what is used much) + 2 - 2 (must be written first), or 22 +
  // 4 - 2.
  CHECK(machine.Only() == "100/34");
}

TEST_CASE("Control groups v1: limits up to the root, where the largest number is none", "[unit]") {
  Machine machine;
  machine.Groups("5:cpu,cpuacct:/\n4:memory:/pod/one\n1:name=systemd:/x\n0::/\n");
  machine.MountV2("/", "/sys/fs/cgroup/unified");
  machine.MountV1();
  machine.GroupV1("/sys/fs/cgroup/memory", kNoLimitV1, 4000);
  machine.GroupV1("/sys/fs/cgroup/memory/pod", Mib(150), 100);
  machine.GroupV1("/sys/fs/cgroup/memory/pod/one", kNoLimitV1, 10);
  CHECK(machine.Only() == "150/50");
}

TEST_CASE("Control groups v1: several controllers on one mount, a name that looks like one, a space in the path", "[unit]") {
  Machine machine;
  machine.Groups("7:name=memory:/wrong\n6:cpuset,memory,hugetlb:/a b\n");
  machine.Mount("/", "/wrong", "cgroup", "rw,name=memory");
  machine.Mount("/", "/mnt/all\\040of\\040it", "cgroup", "rw,cpuset,memory,hugetlb");
  machine.GroupV1("/mnt/all of it", kNoLimitV1, 1);
  machine.GroupV1("/mnt/all of it/a b", Mib(33), 3);
  CHECK(machine.Only() == "33/30");
}

TEST_CASE("Control groups v1: a container sees its own group, with or without a namespace", "[unit]") {
  Machine machine;
  SECTION("without") {
    machine.Groups("4:memory:/docker/abc\n");
    machine.MountV1("/docker/abc");
  }
  SECTION("with one") {
    machine.Groups("4:memory:/\n");
    machine.MountV1("/");
  }
  machine.GroupV1("/sys/fs/cgroup/memory", Mib(60), 12);
  CHECK(machine.Only() == "60/48");
}

TEST_CASE("Control groups v1: memory with swap has a limit of its own", "[unit]") {
  Machine machine;
  machine.Groups("4:memory:/\n");
  machine.MountV1();
  machine.GroupV1("/sys/fs/cgroup/memory", Mib(100), 40);
  machine.Write("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", Mib(120));
  machine.Write("/sys/fs/cgroup/memory/memory.memsw.usage_in_bytes", Mib(110));
  CHECK(machine.Only() == "100/10");
  machine.Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", kNoLimitV1);  // the only one
  CHECK(machine.Only() == "120/10");
}

TEST_CASE("Control groups v1: a limit of a group that can't be seen is refused, not passed over", "[unit]") {
  Machine machine;
  machine.Groups("4:memory:/docker/abc\n");
  machine.MountV1("/docker/abc");
  machine.GroupV1("/sys/fs/cgroup/memory", kNoLimitV1, 12, "hierarchical_memory_limit 52428800\n");
  CheckHas(machine.Only(), "can't be seen from here allows 50 MiB");
  machine.GroupV1("/sys/fs/cgroup/memory", Mib(50), 12, "hierarchical_memory_limit 52428800\n");
  CHECK(machine.Only() == "50/38");
}

TEST_CASE("Control groups: a limit that can't be determined is an error that names the reason", "[unit]") {
  Machine machine;
  machine.Groups("0::/kvmd\n");
  SECTION("no cgroup mount") {
    machine.Write("/proc/self/mountinfo", "20 1 8:1 / / rw - ext4 /dev/root rw\n");
    CheckHas(machine.Only(), "no mount of cgroup2 shows it");
  }
  SECTION("no list of mounts") { CheckHas(machine.Only(), "mountinfo"); }
  SECTION("the mount is covered by another") {
    machine.MountV2();
    machine.Write("/sys/fs/cgroup/kvmd/memory.max", "max\n");
    CheckHas(machine.Only(), "no mount of cgroup2 shows it");
  }
  SECTION("a limit that is none") {
    machine.MountV2();
    machine.GroupV2("/sys/fs/cgroup/kvmd", "plenty\n", 1);
    CheckHas(machine.Only(), "memory.max is no limit: plenty");
  }
  SECTION("a limit that can't be read") {
    machine.MountV2();
    machine.GroupV2("/sys/fs/cgroup/kvmd", "max\n", 1);
    fs::remove(machine.dir() / "sys/fs/cgroup/kvmd/memory.max");
    fs::create_directory(machine.dir() / "sys/fs/cgroup/kvmd/memory.max");
    CheckHas(machine.Only(), "memory.max");
  }
  SECTION("what is in use can't be read") {
    machine.MountV2();
    machine.GroupV2("/sys/fs/cgroup/kvmd", Mib(10), 1);
    fs::remove(machine.dir() / "sys/fs/cgroup/kvmd/memory.current");
    CheckHas(machine.Only(), "memory.current");
  }
  SECTION("a v1 group without its limit") {
    machine.Groups("4:memory:/kvmd\n");
    machine.MountV1();
    machine.Write("/sys/fs/cgroup/memory/kvmd/cgroup.procs", "");
    CheckHas(machine.Only(), "memory.limit_in_bytes");
  }
  SECTION("no /proc") {
    fs::remove(machine.dir() / "proc/self/cgroup");
    CheckHas(machine.Only(), "/proc/self/cgroup");
  }
}

TEST_CASE("Control groups: a kernel without them, and the root of all groups, set no limit", "[unit]") {
  Machine machine;
  SECTION("no such file in /proc") { machine.Write("/proc/self/mountinfo", ""); }
  SECTION("no memory controller") {
    machine.Groups("3:cpu:/x\n");
    machine.MountV1("/", "/sys/fs/cgroup/cpu", "rw,cpu");
  }
  SECTION("the root, and no mount to look at it") {
    machine.Groups("0::/\n");
    machine.Write("/proc/self/mountinfo", "");
    fs::create_directories(machine.dir() / "proc/self/ns");
    fs::create_symlink("cgroup:[4026531835]", machine.dir() / "proc/self/ns/cgroup");
  }
  CHECK(machine.Only() == "none");
}

TEST_CASE("Control groups: the root of a namespace is not the root of all groups", "[unit]") {
  Machine machine;
  machine.Groups("0::/\n");
  machine.Write("/proc/self/mountinfo", "");
  fs::create_directories(machine.dir() / "proc/self/ns");
  fs::create_symlink("cgroup:[4026532790]", machine.dir() / "proc/self/ns/cgroup");
  CheckHas(machine.Only(), "can't be told");
}

}  // namespace
}  // namespace kvm::test
