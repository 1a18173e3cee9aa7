// How many descriptors kvmd may keep for regions: of all domains together, and of each. They come out of the one table that
// connections need, too (RLIMIT_NOFILE), so connections come first: a socket and a pidfd for each of --max-clients.
//
// Not thread-safe.
#pragma once

#include <cstdint>

#include "daemon/system/config.h"
#include "kvm/error.h"

namespace kvm::daemon {

class DescriptorQuota {
 public:
  // `stored`: a service manager takes copies, each of which costs this process another descriptor.
  DescriptorQuota(const Config& config, bool stored);
  DescriptorQuota(const Config& config, bool stored, std::uint64_t process_limit);

  // Whether a domain for which `of_domain` are kept may have `more`. kResourceExhausted: the message names what sets the limit.
  [[nodiscard]] Status Check(std::uint64_t of_domain, std::uint64_t more) const;
  void Add(std::uint64_t descriptors) noexcept { kept_ += descriptors; }
  void Remove(std::uint64_t descriptors) noexcept { kept_ -= descriptors; }

  std::uint64_t kept() const noexcept { return kept_; }
  std::uint64_t max() const noexcept { return max_; }
  // What --max-fds-per-domain says; with 0, half of max(), so that no domain alone can use it up.
  std::uint64_t max_of_domain() const noexcept { return max_of_domain_; }

 private:
  const std::uint64_t max_, max_of_domain_;
  std::uint64_t kept_ = 0;
};

}  // namespace kvm::daemon
