// Connection: a client's connection as kvmd's services see it.
//
// The server implements it over a socket and tests implement it without one, so no service knows of
// sockets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

// What the kernel reports of the process at the other end.
struct Credentials {
  std::uint32_t pid = 0, uid = 0, gid = 0;
};

// Outlives the client's membership.
class Connection {
 public:
  virtual ~Connection() = default;
  // Never calls back into the broker. If a message can't be sent for a reason that lies in kvmd,
  // the connection does not end: a request is answered with the error instead, and an announcement
  // is left out.
  virtual void Send(const kvmwire::ServerMessage& message, const std::vector<int>& fds = {}) = 0;
  // False: kvmd has no descriptors left to let the message wait with, and nothing has been sent.
  virtual bool TrySend(const kvmwire::ServerMessage& message, const std::vector<int>& fds) {
    Send(message, fds);
    return true;
  }
  // Whether the client has read the descriptors that it was sent before.
  virtual bool TakesAnnouncements() const { return true; }
  virtual std::size_t queued_bytes() const = 0;
  // Whether the other end has closed, though what it sent before may not have been read yet.
  virtual bool HungUp() const = 0;
  // Ends the connection at once; the broker's Leave is called from inside.
  virtual void Disconnect() = 0;
};

}  // namespace kvm::daemon
