// How much memory this process may have: the one answer, for everything that kvmd and libkvclient allocate.
//
// The kernel does not refuse memory that a control group or the machine lacks: it kills a process. So code
// that allocates asks here first and allocates directly afterwards, in parts. It asks again for each part,
// so processes that allocate at the same time see each other. An amount that can't be determined is refused
// (proto/base/control_groups.h).
//
// The answer counts the machine (proto/base/machine_memory.h) and each control group that this process can
// see. A process inside a namespace can't see the limits of groups outside of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvm/error.h"
#include "proto/base/control_groups.h"
#include "proto/base/machine_memory.h"

namespace kvm {

// A part of each level stays unused: page tables, kernel memory, and memory that is counted late.
std::uint64_t SpareBytes(std::uint64_t limit_bytes) noexcept;  // a 16th, at most 128 MiB

class MemoryRoom {
 public:
  // What the kernel says now. Errors: see ReadControlGroups, ReadInstalledMemory.
  [[nodiscard]] static Result<MemoryRoom> Read();
  // The same of another machine: `root` stands for /.
  [[nodiscard]] static Result<MemoryRoom> ReadFrom(const std::string& root, const InstalledMemory& installed);

  // The level with the least to have at all, and the one with the least left.
  const MemoryLevel& smallest() const noexcept;
  const MemoryLevel& fullest() const noexcept;
  // What could be allocated now.
  std::uint64_t bytes() const noexcept;
  // kResourceExhausted, with the figures: `bytes` for `what` are more than that, or than RLIMIT_FSIZE allows a memfd.
  [[nodiscard]] Status Check(std::uint64_t bytes, const std::string& what) const;

 private:
  std::vector<MemoryLevel> levels_;  // at least the machine
};

// MemoryRoom::Read().Check(): for memory that is allocated by other means than AllocateFile.
[[nodiscard]] Status CheckMemoryRoom(std::uint64_t bytes, const std::string& what);
// Memory that another process will allocate and answer for: what the machine has left counts, not this process's groups.
[[nodiscard]] Status CheckMachineRoom(std::uint64_t bytes, const std::string& what);
// Whether a memfd can be so large at all: RLIMIT_FSIZE, and what is installed. Reads no file.
[[nodiscard]] Status CheckFileSize(std::uint64_t bytes, const std::string& what);
// Allocates bytes [begin, end) of a memfd (fallocate), part by part. kResourceExhausted: there is no room, or the kernel
// has refused. kSystem. What a failed call has allocated stays until the file goes.
[[nodiscard]] Status AllocateFile(int fd, std::uint64_t begin, std::uint64_t end, const std::string& what);

}  // namespace kvm
