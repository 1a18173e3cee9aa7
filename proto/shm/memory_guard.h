// Keeps this process alive when memory that it maps from a shared file is lost under it.
//
// Whoever may write a memfd that is not sealed against writing may also punch a hole in it. The kernel then looks for a
// new page at the next access, and where it has none (huge pages, a strict commit limit), or where it can't read a page
// back, the access is a SIGBUS, which ends a process by default. Checking beforehand can't help, since the hole may come
// at any time.
//
// A guard makes it a state instead: the first one installs a SIGBUS handler for the process. For an address inside a
// guarded mapping that maps anonymous zeros there and notes the loss; the access goes on and reads zeros. So whoever
// reads through a guarded mapping asks afterwards whether it was lost, before it believes what it has read. Zeros are no
// readable generation, so a lost generation table makes all of its blocks unreadable without being asked.
//
// Any other SIGBUS goes to the action that was there before, as if this handler did not exist: an engine's own handler
// gets it with the same arguments and mask, the default action ends the process at the same instruction. If somebody
// installs a handler afterwards, the next guard goes in front of that one. The handler uses system calls and lock-free
// atomics only. A thread that blocks SIGBUS is not protected: the kernel ends the process then.
//
// Not for memory whose bytes this process itself depends on: its own blocks must not become zeros in silence.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvm {

class MemoryGuard {
 public:
  enum class Access {
    kRead,   // all of the mapping is replaced
    kWrite,  // only the page is replaced, by private memory: what others see of the rest stays this process's to write
  };

  MemoryGuard() = default;  // guards nothing
  // Guards the mapping of a shared file at [begin, begin + bytes), which must outlive the guard; `begin` and the mapping's end are
  // multiples of `page_bytes`, that of the file.
  MemoryGuard(const void* begin, std::size_t bytes, std::size_t page_bytes, Access access);
  ~MemoryGuard() { Release(); }
  MemoryGuard(MemoryGuard&& other) noexcept;
  MemoryGuard& operator=(MemoryGuard&& other) noexcept;
  MemoryGuard(const MemoryGuard&) = delete;
  MemoryGuard& operator=(const MemoryGuard&) = delete;

  // Whether any of it was lost before this call: then what was read through the mapping may be zeros that nobody wrote.
  bool lost() const noexcept;
  // How many losses there were in this process, over all guards. While it is 0, no guard has lost anything.
  static std::uint64_t losses() noexcept;

 private:
  struct Entry;
  struct Table;
  friend struct Table;
  void Release() noexcept;

  Entry* entry_ = nullptr;
};

}  // namespace kvm
