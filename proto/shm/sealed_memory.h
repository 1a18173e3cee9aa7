// Shared memory that cannot change its size and that only its owner can write.
//
// Memfds, preallocated (a machine without memory is an error here, not a SIGBUS later), mode 0400,
// of two kinds:
//   sealed   Its maker maps it writable once and then seals it with F_SEAL_FUTURE_WRITE | SHRINK |
//            GROW | SEAL. A process that receives its descriptor can only map it read-only, for
//            ever.
//   granted  kvmd makes it for a client, without F_SEAL_FUTURE_WRITE. A process with the read-write
//            descriptor may write it, so kvmd can pass it to a later owner. All others get a
//            read-only descriptor, and can't turn it into a writable one, since inode and mode are
//            kvmd's. A writer may also punch holes into it, and readers are prepared for that
//            (proto/shm/memory_guard.h).
// A forked child does not inherit its parent's writable mappings (MADV_DONTFORK), since kvmd does
// not watch the child. It has the descriptors until it executes another program. Readers' mappings
// are inherited. Owner and reader are different types. Both are movable and unmap on destruction;
// neither moves the memory, so pointers stay good across a move. After a crash of the owner the
// memory lives on as long as any descriptor or mapping does.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include <boost/interprocess/mapped_region.hpp>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"
#include "proto/shm/memory_guard.h"

namespace kvm {

// kTry: transparent huge pages, if the kernel grants them. kLater: the mapping
// is aligned for them, and the maker asks for them itself, in parts, since the kernel copies the
// memory.
enum class HugePages { kNever, kTry, kLater };

// The maker's side: writable.
class OwnedMemory {
 public:
  OwnedMemory() = default;
  OwnedMemory(OwnedMemory&&) = default;
  OwnedMemory& operator=(OwnedMemory&& other) noexcept;

  // `name` is shown in /proc/PID/maps. The memory is zeroed.
  // kInvalidArgument: size 0. kResourceExhausted: this process may not allocate so much
  // (proto/base/memory_room.h).
  // kSystem, kUnsupported: the room can't be determined, or memfd_create, mmap or fcntl failed.
  [[nodiscard]] static Result<OwnedMemory> Create(const std::string& name, std::size_t size_bytes, HugePages huge = HugePages::kNever);

  // The same without its pages: AllocateSome makes them. Until it has made the last one, the memory
  // is neither to be touched nor to be passed on.
  [[nodiscard]] static Result<OwnedMemory> Reserve(const std::string& name, std::size_t size_bytes, HugePages huge = HugePages::kNever);
  // Allocates the next pages of reserved memory, at most `most_bytes`. kResourceExhausted: there is
  // no room for all that is left. kSystem, kUnsupported as for Create.
  [[nodiscard]] Status AllocateSome(std::size_t most_bytes);
  // Whether all of it is allocated.
  bool whole() const noexcept { return allocated_ == size(); }

  // Maps granted memory of exactly `size_bytes` and allocates the pages that are not allocated yet.
  // kPermissionDenied: a seal is missing, or the descriptor can't be written. kInvalidArgument:
  // another size.
  // kResourceExhausted, kUnsupported as for Create. kSystem: fallocate or mmap failed.
  [[nodiscard]] static Result<OwnedMemory> Take(UniqueFd fd, std::size_t size_bytes, HugePages huge = HugePages::kNever);

  std::byte* data() const noexcept { return static_cast<std::byte*>(mapping_.get_address()); }
  std::size_t size() const noexcept { return mapping_.get_size(); }
  int fd() const noexcept { return fd_.get(); }

  // For memory that other processes may punch holes in, and whose bytes this process does not
  // depend on: from here on, an access to a hole does not raise a signal; lost() is true after it
  // (proto/shm/memory_guard.h).
  void Guard();
  bool lost() const noexcept { return guard_.lost(); }

 private:
  UniqueFd fd_;
  std::string name_;
  std::size_t allocated_ = 0;  // from its beginning
  boost::interprocess::mapped_region mapping_;
  MemoryGuard guard_;  // last: it ends before the mapping
};

// A reader's side: a read-only mapping. A write through it raises SIGSEGV, and mprotect to writable
// fails with EACCES. A read never raises a signal, even if the memory is taken away: see lost().
class MappedMemory {
 public:
  MappedMemory() = default;
  MappedMemory(MappedMemory&&) = default;
  MappedMemory& operator=(MappedMemory&& other) noexcept;

  // Maps all of `fd`, which may be closed afterwards.
  // kPermissionDenied: the memory can be resized, so its sender could truncate it while the reader
  // uses it.
  // kInvalidArgument: the memory is empty, smaller than `min_size_bytes`, or not fully allocated.
  // kSystem: fstat, fcntl or mmap failed.
  [[nodiscard]] static Result<MappedMemory> Attach(int fd, std::size_t min_size_bytes = 1, HugePages huge = HugePages::kNever);

  const std::byte* data() const noexcept { return static_cast<const std::byte*>(mapping_.get_address()); }
  std::size_t size() const noexcept { return mapping_.get_size(); }
  explicit operator bool() const noexcept { return mapping_.get_size() != 0; }
  // Whether a read has found some of the memory gone; all of it reads as zeros from then on. Call
  // it after the bytes have been read and before they are used.
  bool lost() const noexcept { return guard_.lost(); }

 private:
  boost::interprocess::mapped_region mapping_;
  MemoryGuard guard_;  // last: it ends before the mapping
};

// Checks what Attach checks, without mapping; returns the size in bytes.
[[nodiscard]] Result<std::size_t> CheckSealed(int fd, std::size_t min_size_bytes);
// Whether all of the memory is still allocated, as it was when CheckSealed checked it. False from
// the time that a hole is punched in it until a process touches the hole. A hole smaller than a
// huge page may go unnoticed.
bool IsWhole(int fd) noexcept;
// Whether the memory is on ordinary pages (tmpfs), which the kernel can take from any free memory.
bool OnOrdinaryPages(int fd) noexcept;

enum class PagePool {
  kOrdinary,
  kReservedHuge,  // 2 MiB pages that the administrator reserved; the size must be a multiple
};

// kvmd's side of granted memory: a read-write descriptor of memory that reads as zeros. No page is
// allocated yet: the owner allocates them, so that the owner's control group is charged.
// kInvalidArgument: size 0. kResourceExhausted: the machine does not have that much. kSystem:
// memfd_create, ftruncate or fcntl failed.
[[nodiscard]] Result<UniqueFd> CreateGrantable(const std::string& name, std::size_t size_bytes, PagePool pool = PagePool::kOrdinary);
// Returns a descriptor of the same memory that can only be mapped read-only. kSystem: this process
// may not open it.
[[nodiscard]] Result<UniqueFd> ReopenReadOnly(int fd);

// Whether a process has granted memory open for writing, or mapped through such a descriptor. `fd`:
// from ReopenReadOnly. False also where the kernel can't tell (a file system without leases).
bool MayBeWritten(int fd) noexcept;

// Which processes can make a writable mapping of the memory behind `fd`.
enum class Writers {
  kNobody,   // sealed
  kHolders,  // granted by this process's user, and `fd` is a read-write descriptor
  kAnybody,  // neither
};
Writers WritersOf(int fd) noexcept;

}  // namespace kvm
