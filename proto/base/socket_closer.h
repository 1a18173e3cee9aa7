// SocketCloser: closes connections with unread descriptors in them, and never waits for these.
//
// Each of thousands of connections may bring a descriptor whose last close waits for its owner
// (descriptor_closer.h). So connections leave the process's table of descriptors at once: they are
// sent to a closing thread, which has a table of its own with nothing else in it. Once it has
// received some, it starts its successor and ends. The kernel closes what is in the table of a
// thread that ends, and then waits for no SO_LINGER; nor for FUSE, which is told of the last close
// of an unread file and need not answer.
//
// Should something keep even a thread that ends, up to kMostEnding of them may be there; further
// connections then wait in the process's table, until one of these has gone.
#pragma once

#include <cstddef>
#include <memory>

#include "proto/base/unique_fd.h"

namespace kvm {

// Thread-safe, but for Start.
class SocketCloser {
 public:
  static constexpr std::size_t kMostEnding = 16;

  SocketCloser() noexcept;
  ~SocketCloser();  // what was taken is still closed
  SocketCloser(const SocketCloser&) = delete;
  SocketCloser& operator=(const SocketCloser&) = delete;

  // Once, while the process has no descriptors of others: the first closing thread closes its
  // copies of all. False: Take takes nothing, for lack of memory or threads, or since the kernel
  // gives no thread a table of its own (before Linux 5.9, or it is not allowed to).
  bool Start() noexcept;
  // Takes a connection that has been shut down. False: `socket` stays the caller's.
  bool Take(UniqueFd& socket) noexcept;
  // Those that are still in the process's table.
  std::size_t waiting() const noexcept;

 private:
  struct State;
  std::shared_ptr<State> state_;  // shared with the threads; null: not started
  // Where closing threads receive. Shared with threads that have the process's table only.
  std::shared_ptr<const UniqueFd> to_;
};

}  // namespace kvm
