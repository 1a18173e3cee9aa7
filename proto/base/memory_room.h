// MemoryRoom: how much memory this process may still allocate. kvmd and libkvclient ask it before
// every large allocation.
//
// The kernel does not refuse memory that a control group or the machine lacks: it kills a process.
// So code that allocates asks here first and allocates directly afterwards, in parts. It asks again
// for each part, so processes that allocate at the same time see each other. An amount that can't
// be determined is refused (proto/base/control_groups.h).
//
// The answer counts the machine (proto/base/machine_memory.h) and each control group that this
// process can see. A process inside a namespace can't see the limits of groups outside of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvm/error.h"
#include "proto/base/control_groups.h"
#include "proto/base/machine_memory.h"

namespace kvm {

// The part of a limit that stays unused, for page tables, kernel memory, and memory that the kernel
// counts late.
std::uint64_t SpareBytes(std::uint64_t limit_bytes) noexcept;  // a 16th, at most 128 MiB

class MemoryRoom {
 public:
  // Reads the limits and the memory in use now. Errors: see ReadControlGroups, ReadInstalledMemory.
  [[nodiscard]] static Result<MemoryRoom> Read();
  // The same for a machine whose files lie below `root` (tests).
  [[nodiscard]] static Result<MemoryRoom> ReadFrom(const std::string& root, const InstalledMemory& installed);

  // The level with the lowest limit, and the level with the least memory left.
  const MemoryLevel& smallest() const noexcept;
  const MemoryLevel& fullest() const noexcept;
  // How many bytes could be allocated now.
  std::uint64_t bytes() const noexcept;
  // kResourceExhausted, with the figures: `bytes` for `what` exceed bytes(), or what RLIMIT_FSIZE
  // allows a memfd.
  [[nodiscard]] Status Check(std::uint64_t bytes, const std::string& what) const;

 private:
  std::vector<MemoryLevel> levels_;  // at least the machine
};

// MemoryRoom::Read().Check(), for memory that is allocated in another way than by AllocateFile.
[[nodiscard]] Status CheckMemoryRoom(std::uint64_t bytes, const std::string& what);
// Checks memory that another process will allocate: the machine's memory counts, and this process's
// control groups do not, since the other process's groups are charged.
[[nodiscard]] Status CheckMachineRoom(std::uint64_t bytes, const std::string& what);
// Checks whether a memfd of this size is possible at all: below RLIMIT_FSIZE, and not more than the
// installed memory. Reads no file.
[[nodiscard]] Status CheckFileSize(std::uint64_t bytes, const std::string& what);
// Allocates bytes [begin, end) of a memfd (fallocate), part by part. kResourceExhausted: there is
// no room, or the kernel has refused. kSystem. A failed call leaves allocated what it had allocated
// by then; that memory is freed with the file.
[[nodiscard]] Status AllocateFile(int fd, std::uint64_t begin, std::uint64_t end, const std::string& what);
// One part of it, of at most `most` bytes, for callers that do other work meanwhile. Returns where
// the next part begins; `end`: there is none. Errors as above: there must be room for all that is
// left.
[[nodiscard]] Result<std::uint64_t> AllocatePart(int fd, std::uint64_t begin, std::uint64_t end, std::uint64_t most,
                                                 const std::string& what);

}  // namespace kvm
