#include "proto/base/receive_bytes.h"

#include <sys/socket.h>

#include <cerrno>

namespace kvm {

void ReceiveInOrder(int socket) noexcept {
  const int on = 1, off = 0;
  static_cast<void>(::setsockopt(socket, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on)));
  // Nothing but descriptors is told of beside the bytes.
  static_cast<void>(::setsockopt(socket, SOL_SOCKET, SO_PASSCRED, &off, sizeof(off)));
  static_cast<void>(::setsockopt(socket, SOL_SOCKET, SO_PASSSEC, &off, sizeof(off)));
}

ssize_t ReceiveBytes(int socket, std::span<std::byte> into) noexcept {
  // A look leaves the descriptors to the socket, and ends with the first message that has some. The
  // kernel then says that there was no room for them.
  iovec vector{into.data(), into.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  const ssize_t seen = ::recvmsg(socket, &message, MSG_PEEK | MSG_DONTWAIT);
  if (seen <= 0) return seen;
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    errno = EBADMSG;
    return -1;
  }
  return ::recv(socket, into.data(), static_cast<std::size_t>(seen), MSG_DONTWAIT);
}

}  // namespace kvm
