// How many descriptors kvmd may keep for regions: for all domains together, and for each domain.
// kvmd's descriptor table (RLIMIT_NOFILE) also has to hold connections. Those come first: a socket
// and a pidfd for each of --max-clients.
//
// Not thread-safe.
#pragma once

#include <cstdint>

#include "daemon/system/config.h"
#include "kvm/error.h"

namespace kvm::daemon {

class DescriptorQuota {
 public:
  // `stored`: a service manager stores copies, each of which costs this process another descriptor.
  DescriptorQuota(const Config& config, bool stored);
  DescriptorQuota(const Config& config, bool stored, std::uint64_t process_limit);

  // Whether a domain that has `of_domain` descriptors may have `more`. kResourceExhausted: the
  // message names the option or limit that is reached.
  [[nodiscard]] Status Check(std::uint64_t of_domain, std::uint64_t more) const;
  void Add(std::uint64_t descriptors) noexcept { kept_ += descriptors; }
  void Remove(std::uint64_t descriptors) noexcept { kept_ -= descriptors; }

  std::uint64_t kept() const noexcept { return kept_; }
  std::uint64_t max() const noexcept { return max_; }
  // The value of --max-fds-per-domain; if that is 0, half of max(), so that no single domain can
  // use it up.
  std::uint64_t max_of_domain() const noexcept { return max_of_domain_; }

 private:
  const std::uint64_t max_, max_of_domain_;
  std::uint64_t kept_ = 0;
};

}  // namespace kvm::daemon
