#include "client/mesh/disk/plain_io.h"

#include <cerrno>

namespace kvm::mesh {
namespace {

int Do(IoRequest request) noexcept {
  for (;;) {
    const iovec* parts = request.parts.data();
    int count = static_cast<int>(request.parts.size());
    while (count > 0 && parts->iov_len == 0) {
      ++parts;
      --count;
    }
    if (count == 0) return 0;
    const auto offset = static_cast<off_t>(request.offset);
    const ssize_t moved = request.write ? ::pwritev(request.fd, parts, count, offset) : ::preadv(request.fd, parts, count, offset);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) return errno;
    if (moved == 0) return ENODATA;
    if (!Advance(request, static_cast<std::uint64_t>(moved))) return 0;
  }
}

}  // namespace

void PlainIo::Run(std::span<IoRequest> requests, const std::function<void(std::size_t)>& done) {
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].error = Do(requests[i]);
    done(i);
  }
}

}  // namespace kvm::mesh
