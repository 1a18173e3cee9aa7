// What all connections of a user together have waiting in kvmd: bytes of replies, announcements and
// half-read messages, and descriptors with them. What each connection may have is small; a user may
// have hundreds of them.
//
// Sessions report what they hold. One that takes its user beyond the limit of bytes is ended; while
// a user is at its limit of descriptors, nothing more is read from it, so it waits for itself.
// Single-threaded.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "daemon/system/config.h"

namespace kvm::daemon {

struct Load {
  std::uint64_t bytes = 0, fds = 0;
};

class UserLoads {
 public:
  explicit UserLoads(const Config& config);

  // What one connection of the user's holds has changed.
  void Change(std::uint32_t uid, const Load& before, const Load& after);
  Load Of(std::uint32_t uid) const;

  bool TooManyBytes(std::uint32_t uid) const { return Of(uid).bytes > max_bytes_; }
  bool ManyFds(std::uint32_t uid) const { return Of(uid).fds >= max_fds_; }
  // For whom it is ended.
  std::string WhyTooManyBytes(std::uint32_t uid) const;

 private:
  const std::uint64_t max_bytes_, max_fds_;
  std::map<std::uint32_t, Load> loads_;
};

}  // namespace kvm::daemon
