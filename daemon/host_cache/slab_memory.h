// SlabMemory: the granted memory of one slab of the host cache (proto/shm/sealed_memory.h). It is
// allocated in slices, so that kvmd's one thread goes on serving, and completely before any process
// uses it, so that a machine without free memory is an error and no SIGBUS.
//
// It is on huge pages that the administrator has reserved if enough are free, else on transparent
// ones as far as the kernel grants them. kvmd maps it only within a call.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "daemon/system/huge_page_maker.h"
#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm::daemon {

class SlabMemory {
 public:
  SlabMemory() = default;
  // At least `bytes`, rounded up to pages. `reserved`: on reserved huge pages, if enough are free.
  // kResourceExhausted: this process may not allocate so much beside `promised` bytes
  // (proto/base/memory_room.h). kSystem, kUnsupported.
  [[nodiscard]] static Result<SlabMemory> Create(const std::string& name, std::uint64_t bytes, std::uint64_t promised = 0,
                                                 bool reserved = true);

  // Takes memory that an earlier kvmd has allocated completely. The other arguments are what that
  // kvmd has stored of it.
  static SlabMemory Reopen(UniqueFd fd, std::uint64_t bytes, bool reserved, std::uint64_t transparent) noexcept;

  // Allocates the next few MiB, if the rest fits beside `promised` bytes, and has `huge_pages` move
  // them; true if there is more to do. Errors as Create.
  [[nodiscard]] Result<bool> AllocateSome(HugePageMaker& huge_pages, std::uint64_t promised = 0);
  // Whether the next call has to wait for `huge_pages`: for the last part, or for one of many. Once
  // the slab is in use its pages can't be moved any more, since clients have them pinned.
  bool waits() const noexcept { return huge_->waiting >= (allocated_ == bytes_ ? 1 : kPartsAhead); }

  // Gives the memory back to the machine, also while clients still have descriptors of it: what a
  // client writes from then on is new memory, and counts as the client's.
  // It is done in slices: true if there is more.
  bool EmptySome() noexcept;

  // Overwrites these bytes with zeros. It goes through the descriptor: a mapping would raise a
  // signal where a process has punched a hole and no memory is left. kUnsupported: on reserved huge
  // pages. kSystem.
  [[nodiscard]] Status Zero(std::uint64_t offset, std::uint64_t bytes) noexcept;

  std::uint64_t size() const noexcept { return bytes_; }
  // Of ordinary memory
  std::uint64_t missing_bytes() const noexcept { return reserved_ ? 0 : bytes_ - allocated_; }
  int writable_fd() const noexcept { return fd_.get(); }
  // How much of the memory is on huge pages.
  std::uint64_t reserved_huge_bytes() const noexcept { return reserved_ ? allocated_ : 0; }
  std::uint64_t transparent_huge_bytes() const noexcept { return huge_->bytes; }

 private:
  static constexpr int kPartsAhead = 8;  // each has a descriptor of kvmd's

  // Of transparent huge pages; shared with what `huge_pages` calls when it is done.
  struct Huge {
    std::uint64_t bytes = 0;
    int waiting = 0;
  };

  UniqueFd fd_;
  std::shared_ptr<Huge> huge_ = std::make_shared<Huge>();
  std::uint64_t bytes_ = 0, allocated_ = 0;
  std::uint64_t emptied_ = 0;
  bool reserved_ = false;
};

}  // namespace kvm::daemon
