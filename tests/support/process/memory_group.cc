#include "tests/support/process/memory_group.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "proto/base/text_files.h"

namespace kvm::test {
namespace {

bool Write(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  return static_cast<bool>(file << text << std::flush);
}

bool Exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

void KillAll(const std::string& group) {
  std::ifstream pids(group + "/cgroup.procs");
  for (pid_t pid = 0; pids >> pid;) {
    if (pid != ::getpid()) ::kill(pid, SIGKILL);
  }
}

}  // namespace

std::optional<MemoryGroup> MemoryGroup::Make(std::uint64_t limit_bytes, std::string& why) {
  static int made = 0;
  const std::string name = "/kvmd-test-" + std::to_string(::getpid()) + "-" + std::to_string(made++);
  why = "no control group with a memory limit can be made here:";
  for (const std::string parent : {"/sys/fs/cgroup/memory", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"}) {
    if (!Exists(parent + "/cgroup.procs")) continue;
    Write(parent + "/cgroup.subtree_control", "+memory");
    MemoryGroup group(parent + name, Exists(parent + "/cgroup.controllers"));
    if (::mkdir(group.path_.c_str(), 0755) != 0) {
      why += " " + parent + ": " + std::strerror(errno) + ";";
      continue;
    }
    const std::string limit = group.path_ + (group.v2_ ? "/memory.max" : "/memory.limit_in_bytes");
    if (Exists(limit) && Write(limit, std::to_string(limit_bytes))) return group;
    why += " " + limit + " can't be written;";
  }
  return std::nullopt;
}

MemoryGroup::MemoryGroup(MemoryGroup&& other) noexcept : path_(std::exchange(other.path_, {})), v2_(other.v2_) {}

MemoryGroup::~MemoryGroup() {
  if (path_.empty()) return;
  std::vector<std::string> groups{path_};
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(path_, ignored)) {
    if (entry.is_directory(ignored)) groups.insert(groups.begin(), entry.path().string());
  }
  for (const std::string& group : groups) {
    for (int tries = 0; ::rmdir(group.c_str()) != 0 && errno == EBUSY && tries < 200; ++tries) {
      KillAll(group);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
}

std::string MemoryGroup::AddInner(const std::string& name) const {
  ::mkdir((path_ + "/" + name).c_str(), 0755);
  return name;
}

std::vector<std::string> MemoryGroup::Enter(const std::string& inner) const {
  const std::string procs = path_ + (inner.empty() ? "" : "/" + inner) + "/cgroup.procs";
  return {"/bin/sh", "-c", "echo $$ > '" + procs + "' && exec \"$0\" \"$@\""};
}

std::uint64_t MemoryGroup::Killed() const {
  const Result<std::string> text = ReadTextFile(path_ + (v2_ ? "/memory.events" : "/memory.oom_control"));
  return text ? NumberAfter(*text, "oom_kill").value_or(0) : 0;
}

std::uint64_t MemoryGroup::UsedBytes() const {
  const Result<std::string> text = ReadTextFile(path_ + (v2_ ? "/memory.current" : "/memory.usage_in_bytes"));
  return text ? ParseNumber(*text).value_or(0) : 0;
}

std::uint64_t MemoryGroup::MostUsedBytes() const {
  const Result<std::string> text = ReadTextFile(path_ + (v2_ ? "/memory.peak" : "/memory.max_usage_in_bytes"));
  return text ? ParseNumber(*text).value_or(0) : 0;
}

}  // namespace kvm::test
