#include "proto/base/socket_peer.h"

namespace kvm {

Result<ucred> PeerOf(int socket) noexcept {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return SystemError("who connects can't be told");
  return peer;
}

std::uint32_t PeerUserOf(int socket) noexcept {
  const Result<ucred> peer = PeerOf(socket);
  return peer ? peer->uid : kNoUser;
}

}  // namespace kvm
