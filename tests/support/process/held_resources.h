// What a process holds, from /proc: descriptors, shared memory, memory of its own. Nothing of a
// process that has ended.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

namespace kvm::test {

// A number in /proc/PID/status, in KiB.
inline std::uint64_t StatusKib(pid_t pid, const std::string& field) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field + ":")) return std::stoull(line.substr(field.size() + 1));
  }
  return 0;
}

inline std::size_t SharedMappings(pid_t pid) {
  std::ifstream maps("/proc/" + std::to_string(pid) + "/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("/memfd:") != std::string::npos;
  return count;
}

// Open descriptors: sockets, files that have a name or had one, and others. Memfds are among the
// others, and apart by inode, with their bytes.
struct OpenFiles {
  explicit OpenFiles(pid_t pid) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd", error)) {
      struct stat info {};
      const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
      const bool memfd = target.starts_with("/memfd:");
      if (memfd && ::stat(entry.path().c_str(), &info) == 0 && inodes.insert(info.st_ino).second)
        bytes += static_cast<std::uint64_t>(info.st_blocks) * 512;
      if (target.starts_with("socket:")) {
        ++sockets;
      } else if (!memfd && target.starts_with("/")) {
        ++files;
        removed += target.ends_with(" (deleted)");
      } else {
        ++others;
      }
    }
  }
  std::size_t sockets = 0, files = 0, others = 0;
  std::size_t removed = 0;  // of the files: those whose name is gone
  std::set<ino_t> inodes;
  std::uint64_t bytes = 0;
};

}  // namespace kvm::test
