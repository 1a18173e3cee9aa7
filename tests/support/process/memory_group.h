// A control group of the test's own with a memory limit, cgroup v1 or v2, whichever is here. What is in it when the object
// goes is killed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace kvm::test {

class MemoryGroup {
 public:
  // Empty: no such group can be made here; `why` says why.
  static std::optional<MemoryGroup> Make(std::uint64_t limit_bytes, std::string& why);
  MemoryGroup(MemoryGroup&& other) noexcept;
  MemoryGroup& operator=(MemoryGroup&&) = delete;
  ~MemoryGroup();

  const std::string& path() const noexcept { return path_; }
  // A group inside of it, with no limit of its own.
  std::string AddInner(const std::string& name) const;
  // What starts a program in the group, or in `inner`: its command line goes behind this.
  std::vector<std::string> Enter(const std::string& inner = {}) const;
  // Processes in it that the kernel has killed for want of memory.
  std::uint64_t Killed() const;
  std::uint64_t UsedBytes() const;
  std::uint64_t MostUsedBytes() const;  // so far; 0 where the kernel does not say

 private:
  MemoryGroup(std::string path, bool v2) : path_(std::move(path)), v2_(v2) {}

  std::string path_;
  bool v2_;
};

}  // namespace kvm::test
