// ConnectionQuota: limits the connections of all users together, and of each user.
//
// A connection counts for the user that the kernel reports; no message of the client changes that.
// Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>

#include "daemon/system/config.h"
#include "kvm/error.h"

namespace kvm::daemon {

class ConnectionQuota {
 public:
  explicit ConnectionQuota(const Config& config);

  // Counts a connection of `uid`. kResourceExhausted, the option named: this user or all users have
  // as many as allowed.
  [[nodiscard]] Status Add(std::uint32_t uid);
  // Called when a counted connection has ended.
  void Remove(std::uint32_t uid);

  std::size_t total() const noexcept { return total_; }
  std::uint32_t per_user() const noexcept { return per_user_; }

 private:
  const std::uint32_t max_, per_user_;
  std::size_t total_ = 0;
  std::unordered_map<std::uint32_t, std::uint32_t> of_user_;
};

}  // namespace kvm::daemon
