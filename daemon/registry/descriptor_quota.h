// How many descriptors kvmd may keep for regions: of all domains together, and of each. They come
// out of the one table that connections need, too (RLIMIT_NOFILE), so connections come first: a
// socket and a pidfd for each of --max-clients, and what waits for one user.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "daemon/system/config.h"
#include "kvm/error.h"

namespace kvm::daemon {

// Descriptors that may wait for all connections of one user: --max-waiting-fds-per-user, or if that
// is 0 an eighth of what this process may have, at most 16,384.
std::uint64_t WaitingDescriptorsPerUser(const Config& config) noexcept;

class DescriptorQuota {
 public:
  // `stored`: a service manager takes copies, each of which costs this process another descriptor;
  // `store_size`: at most so many, if it says.
  DescriptorQuota(const Config& config, bool stored, std::optional<std::uint64_t> store_size = {});
  DescriptorQuota(const Config& config, bool stored, std::uint64_t process_limit);

  // Whether a domain that has `of_domain` descriptors, `max_of_domain` at most, may have `more`.
  // kResourceExhausted: the message names the option or limit that is reached.
  [[nodiscard]] Status Check(std::uint64_t of_domain, std::uint64_t more, std::uint64_t max_of_domain) const;
  // Whether a user may have `more` over all domains: --max-fds-per-user, or if that is 0 as many as
  // a domain, three quarters of that where the domain is `shared` with other users.
  [[nodiscard]] Status CheckUser(std::uint32_t uid, std::uint64_t more, std::uint64_t max_of_domain, bool shared) const;
  // `uid`: none for kvmd's own.
  void Add(std::uint64_t descriptors, std::optional<std::uint32_t> uid);
  void Remove(std::uint64_t descriptors, std::optional<std::uint32_t> uid) noexcept;

  std::uint64_t kept() const noexcept { return kept_; }
  std::uint64_t max() const noexcept { return max_; }
  // The value of --max-fds-per-domain; if that is 0, half of max(), so that no single domain can
  // use it up.
  std::uint64_t max_of_domain() const noexcept { return max_of_domain_; }

 private:
  DescriptorQuota(const Config& config, std::uint64_t max);

  const std::uint64_t max_, max_of_domain_, max_of_user_;
  std::uint64_t kept_ = 0;
  std::map<std::uint32_t, std::uint64_t> of_user_;
};

}  // namespace kvm::daemon
