// DescriptorCloser: closes descriptors whose close may take long, in threads of its own.
//
// The last close of memory frees all of it, and that of a GPU's memory waits for its driver. The
// last close of a socket waits until its data has been sent, for as long as its owner has said
// (SO_LINGER); that of a file waits for its file system, which may be a process of the owner's
// (FUSE). Who connects to a Unix socket may send such a descriptor and close its own. A server's
// thread must not wait for any of them; nor for those that are queued, unread, in a socket that it
// closes, since the kernel closes them with it.
//
// Each user has a thread while there is something to close, so that users wait for themselves.
// Connections go another way (socket_closer.h), so that those that are refused, or end, do not pile
// up behind a descriptor that is waited for. What is not closed when the process ends is closed by
// the kernel, which does not wait then.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "proto/base/socket_closer.h"
#include "proto/base/unique_fd.h"

namespace kvm {

// Whether the descriptor may be of memory that a client shares: of a memfd, or a driver's, whose
// close waits for no other process. Asks no file system.
bool MayBeMemory(int fd) noexcept;

// Thread-safe.
class DescriptorCloser {
 public:
  // So many may wait, longer than kPatience, before nothing more is taken from a user (Behind).
  // Where many connections end together, more wait for a moment, up to kMostWaiting. Memory, whose
  // closes all end, is counted by itself.
  static constexpr std::size_t kMaxWaiting = 64, kMostWaiting = 512, kMostMemory = 4096;
  static constexpr std::chrono::milliseconds kPatience{200};

  DescriptorCloser();
  ~DescriptorCloser();  // its threads go on
  DescriptorCloser(const DescriptorCloser&) = delete;
  DescriptorCloser& operator=(const DescriptorCloser&) = delete;

  // From a thread of the closer's: all descriptors of a user that waited have been closed. Before
  // anything is closed; `closed` is not called once the closer is gone.
  void OnClosed(std::function<void()> closed);
  // Once, before anything is received: from then on, connections wait for no descriptors. Else, or
  // where the kernel does not allow it, they wait like descriptors.
  void StartForSockets() noexcept;

  // Memory that is quickly freed is closed at once, by the caller; if memory is short, all is. So
  // does CloseSocket.
  void Close(std::uint32_t uid, std::vector<UniqueFd> fds) noexcept { CloseAll(uid, fds); }
  void Close(std::uint32_t uid, UniqueFd fd) noexcept { CloseAll(uid, std::span(&fd, 1)); }
  // Closes a connection of the user's, which is shut down before. At once if nothing is queued in
  // it.
  void CloseSocket(std::uint32_t uid, UniqueFd socket) noexcept;
  // Whether kMaxWaiting of the user's descriptors have been handed over and are not closed yet,
  // while one has been waited for longer than kPatience; or whether kMostWaiting have, or
  // kMostMemory of memory.
  bool Behind(std::uint32_t uid) const;
  // Whether any of the user's descriptors are not closed yet, so that memory may still be freed.
  bool Closing(std::uint32_t uid) const;
  // Connections that have been handed over and are still in the process's table, for a moment.
  std::size_t waiting_sockets() const noexcept { return sockets_.waiting(); }

 private:
  struct State;
  void CloseAll(std::uint32_t uid, std::span<UniqueFd> fds) noexcept;
  void Queue(std::uint32_t uid, std::span<UniqueFd> fds);
  // Closes what waits, of this user and then of users that have got no thread.
  static void Run(const std::shared_ptr<State>& state, std::uint32_t uid);

  const std::shared_ptr<State> state_;  // shared with the threads
  SocketCloser sockets_;
};

}  // namespace kvm
