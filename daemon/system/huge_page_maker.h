// HugePageMaker: moves parts of shared memory files to huge pages.
//
// The kernel copies the memory for that, and waits meanwhile until each processor of the machine
// has run a piece of its work. Where processors are busy that takes as long as their scheduling
// does, seconds where real-time work has them. kvmd's thread must not wait for it, so
// daemon/server/huge_page_thread.h asks the kernel in a thread of its own. HugePagesNow asks in the
// calling thread, for a broker without a server.
//
// A refusal (kernels before 6.1, a machine short of memory) only costs speed.
#pragma once

#include <cstdint>
#include <functional>

namespace kvm::daemon {

inline constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20;

class HugePageMaker {
 public:
  // Gets the number of bytes that were moved.
  using Done = std::function<void(std::uint64_t)>;

  virtual ~HugePageMaker() = default;
  // Moves the whole huge pages of the range, whose memory is allocated and whose `offset` in the
  // file is a multiple of kHugePageBytes. The memory may be used meanwhile, and `fd` be closed.
  // `done` runs on the thread that called, maybe before this returns; not after the maker's end.
  virtual void Make(int fd, std::uint64_t offset, std::uint64_t bytes, Done done) = 0;
};

class HugePagesNow final : public HugePageMaker {
 public:
  void Make(int fd, std::uint64_t offset, std::uint64_t bytes, Done done) override;
};

// The number of bytes that were moved. Thread-safe.
std::uint64_t MoveToHugePages(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept;

}  // namespace kvm::daemon
