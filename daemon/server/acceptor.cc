#include "daemon/server/acceptor.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "daemon/system/process_info.h"
#include "proto/base/receive_bytes.h"
#include "proto/base/socket_peer.h"

namespace kvm::daemon {

Result<std::size_t> Acceptor::AcceptSome(int listener) {
  std::size_t count = 0;
  while (count < kAtOnce) {
    UniqueFd socket(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) break;
      if (errno != ECONNABORTED && errno != EINTR) return SystemError("accept a connection");
    }
    ++count;
    if (!socket) continue;
    ReceiveInOrder(socket.get());
    if (!HasGone(socket.get())) {
      taken_(std::move(socket));
    } else {
      const std::uint32_t uid = PeerUserOf(socket.get());
      closer_.CloseSocket(uid, std::move(socket));
    }
  }
  return count;
}

}  // namespace kvm::daemon
