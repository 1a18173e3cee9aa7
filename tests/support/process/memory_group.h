// A control group of the test with a memory limit, in cgroup v1 or v2. The destructor kills the
// processes in it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace kvm::test {

class MemoryGroup {
 public:
  // Empty if no such group can be made on this machine; `why` is the reason.
  static std::optional<MemoryGroup> Make(std::uint64_t limit_bytes, std::string& why);
  MemoryGroup(MemoryGroup&& other) noexcept;
  MemoryGroup& operator=(MemoryGroup&&) = delete;
  ~MemoryGroup();

  const std::string& path() const noexcept { return path_; }
  // A group inside of it, with no limit of its own.
  std::string AddInner(const std::string& name) const;
  // A command line that starts a program in the group, or in `inner`; the program's command line is
  // appended.
  std::vector<std::string> Enter(const std::string& inner = {}) const;
  // The number of processes in it that the kernel has killed for lack of memory.
  std::uint64_t Killed() const;
  std::uint64_t UsedBytes() const;
  std::uint64_t MostUsedBytes() const;  // so far; 0 if the kernel does not tell

 private:
  MemoryGroup(std::string path, bool v2) : path_(std::move(path)), v2_(v2) {}

  std::string path_;
  bool v2_;
};

}  // namespace kvm::test
