// Acceptor: takes connections from the socket that kvmd listens on, some at a time.
//
// It takes them faster than one user can make them, so that the queue of the socket has room for
// the others, and then leaves kvmd's thread to other work. A connection that has ended meanwhile is
// dropped here and costs nothing more.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>

#include "kvm/error.h"
#include "proto/base/descriptor_closer.h"
#include "proto/base/unique_fd.h"

namespace kvm::daemon {

class Acceptor {
 public:
  // Connections that one call of AcceptSome takes at most, those that have ended included.
  static constexpr std::size_t kAtOnce = 256;

  // `taken` is called for each connection that lasts. Its socket does not block. `closer` closes
  // the others, and outlives the acceptor.
  Acceptor(std::function<void(UniqueFd)> taken, DescriptorCloser& closer) : taken_(std::move(taken)), closer_(closer) {}

  // Takes what waits in the queue of `listener`, a listening socket that does not block. Returns
  // how many; fewer than kAtOnce: none is left. kSystem, kResourceExhausted: the next one can't be
  // taken now.
  [[nodiscard]] Result<std::size_t> AcceptSome(int listener);

 private:
  const std::function<void(UniqueFd)> taken_;
  DescriptorCloser& closer_;
};

}  // namespace kvm::daemon
