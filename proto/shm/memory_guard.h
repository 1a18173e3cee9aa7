// Keeps this process alive when another process removes memory that this one maps.
//
// A process that may write a memfd without a write seal may also punch a hole into it. At the next
// access the kernel looks for a new page. If it has none (huge pages, a strict commit limit), or
// can't read a page back, the access raises SIGBUS, which ends a process by default. Checking
// beforehand can't help, since the hole may come at any time.
//
// A guard turns the loss into a state. The first guard installs a SIGBUS handler for the process.
// For an address inside a guarded mapping, the handler maps anonymous zeros there and notes the
// loss; the access goes on and reads zeros. So code that reads through a guarded mapping asks
// afterwards whether the mapping was lost, before it uses the bytes. Zeros are no readable
// generation, so a lost generation table makes all its blocks unreadable without that question.
//
// Any other SIGBUS goes to the previous action, as if this handler did not exist: an engine's own
// handler gets it with the same arguments and mask, and the default action ends the process at the
// same instruction. If other code installs a handler later, the next guard installs itself in front
// of it. The handler uses only system calls and lock-free atomics. A thread that blocks SIGBUS is
// not protected: the kernel then ends the process.
//
// Not for memory whose bytes this process itself depends on: its own blocks must not silently
// become zeros.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvm {

class MemoryGuard {
 public:
  enum class Access {
    kRead,  // all of the mapping is replaced
    // Only the page is replaced, by private memory; this process goes on writing the rest of the
    // mapping, which other processes see
    kWrite,
  };

  MemoryGuard() = default;  // guards nothing
  // Guards the mapping of a shared file at [begin, begin + bytes), which must outlive the guard;
  // `begin` and the mapping's end are multiples of `page_bytes`, that of the file.
  MemoryGuard(const void* begin, std::size_t bytes, std::size_t page_bytes, Access access);
  ~MemoryGuard() { Release(); }
  MemoryGuard(MemoryGuard&& other) noexcept;
  MemoryGuard& operator=(MemoryGuard&& other) noexcept;
  MemoryGuard(const MemoryGuard&) = delete;
  MemoryGuard& operator=(const MemoryGuard&) = delete;

  // Whether any of the mapping was lost before this call. If so, bytes that were read through it
  // may be zeros that the memory's owner has not written.
  bool lost() const noexcept;
  // The number of losses in this process, over all guards. While it is 0, no guarded mapping has
  // lost memory.
  static std::uint64_t losses() noexcept;

 private:
  struct Entry;
  struct Table;
  friend struct Table;
  void Release() noexcept;

  Entry* entry_ = nullptr;
};

}  // namespace kvm
