// BlockIo: reads and writes of the disk cache's files, several at a time.
//
// Two implementations: io_uring by liburing, with kDepth operations under way, and preadv/pwritev
// one after another, for kernels, containers and builds without io_uring. Both block the calling
// thread, which is one of the disk's own. Not thread-safe: each thread has its own.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "kvm/error.h"

namespace kvm::mesh {

struct IoRequest {
  bool write = false;
  int fd = -1;
  std::uint64_t offset = 0;
  std::array<iovec, 2> parts{};  // memory, in order; an empty part is skipped
  int error = 0;                 // out: errno; ENODATA: the file ends before
};

class BlockIo {
 public:
  virtual ~BlockIo() = default;
  virtual std::string_view name() const noexcept = 0;
  // Does all of `requests`, in any order, and calls `done` with the index of each that has ended,
  // on this thread, while others go on; it must not throw. Returns when the kernel uses none of
  // their memory any more.
  virtual void Run(std::span<IoRequest> requests, const std::function<void(std::size_t)>& done) = 0;

  static constexpr unsigned kDepth = 32;
};

enum class IoKind : std::uint8_t { kAuto, kUring, kPlain };

std::string_view IoKindName(IoKind kind) noexcept;  // "auto", "io_uring", "pread"
std::optional<IoKind> IoKindFromName(std::string_view name) noexcept;

// kAuto: io_uring if this build has it and the kernel allows it. kUnsupported: kUring, and there is
// none; the message says why.
[[nodiscard]] Result<std::unique_ptr<BlockIo>> MakeBlockIo(IoKind kind);

// Takes `bytes` off the front of a request's memory, and moves its offset. False: nothing is left.
bool Advance(IoRequest& request, std::uint64_t bytes) noexcept;

}  // namespace kvm::mesh
