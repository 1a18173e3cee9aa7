#include "client/mesh/disk/block_io.h"

#include <algorithm>

#include "client/mesh/disk/plain_io.h"
#if defined(KVM_HAVE_URING)
#include "client/mesh/disk/uring_io.h"
#endif

namespace kvm::mesh {
namespace {

Result<std::unique_ptr<BlockIo>> MakeUring() {
#if defined(KVM_HAVE_URING)
  return UringIo::Make();
#else
  return MakeError(Errc::kUnsupported, "this build has no liburing");
#endif
}

}  // namespace

std::string_view IoKindName(IoKind kind) noexcept {
  switch (kind) {
    case IoKind::kAuto: return "auto";
    case IoKind::kUring: return "io_uring";
    case IoKind::kPlain: return "pread";
  }
  return "?";
}

std::optional<IoKind> IoKindFromName(std::string_view name) noexcept {
  for (const IoKind kind : {IoKind::kAuto, IoKind::kUring, IoKind::kPlain})
    if (IoKindName(kind) == name) return kind;
  return std::nullopt;
}

Result<std::unique_ptr<BlockIo>> MakeBlockIo(IoKind kind) {
  if (kind != IoKind::kPlain) {
    Result<std::unique_ptr<BlockIo>> uring = MakeUring();
    if (uring || kind == IoKind::kUring) return uring;
  }
  return std::unique_ptr<BlockIo>(std::make_unique<PlainIo>());
}

bool Advance(IoRequest& request, std::uint64_t bytes) noexcept {
  request.offset += bytes;
  bool left = false;
  for (iovec& part : request.parts) {
    const std::uint64_t taken = std::min<std::uint64_t>(bytes, part.iov_len);
    part.iov_base = static_cast<char*>(part.iov_base) + taken;
    part.iov_len -= taken;
    bytes -= taken;
    left = left || part.iov_len > 0;
  }
  return left;
}

}  // namespace kvm::mesh
