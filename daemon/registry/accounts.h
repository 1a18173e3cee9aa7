// What each client holds in one domain: regions, blocks, descriptors, entries, and whether it, or
// its user over all connections, may have more of them.
//
// Called by Domain, OrphanRegions and EntryTable when a region or an entry is added, is removed or
// gets another owner. It owns the accounts. It also counts this domain's descriptors in the quota
// of all domains (descriptor_quota.h), and takes them off it in its destructor.
//
// Invariants:
//   - Every region of the table belongs to one account, Region::account, which lives at least as
//     long as the region.
//   - An account exists while it has regions; regions that are leaving count.
// Single-threaded.
#pragma once

#include <cstdint>
#include <map>

#include "daemon/registry/descriptor_quota.h"
#include "daemon/registry/region.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

class Accounts {
 public:
  // Both outlive the accounts.
  Accounts(const Config& config, DescriptorQuota& descriptors) : config_(config), descriptors_(descriptors) {}
  Accounts(const Accounts&) = delete;
  Accounts& operator=(const Accounts&) = delete;
  ~Accounts();

  Account Of(ClientId client) const;  // zeros if it has none
  // Whether the client may have one more region of so many blocks and descriptors.
  // kResourceExhausted, the option named.
  [[nodiscard]] Status Check(ClientId client, std::uint64_t blocks, std::size_t fds) const;
  // Whether a user may have one more region of so many blocks and descriptors. kResourceExhausted,
  // user and option named.
  [[nodiscard]] Status CheckUser(ClientId client, std::uint32_t uid, std::uint64_t blocks, std::size_t fds) const;
  // Whether the account's user has as many entries as --max-entries-per-user allows.
  bool HasAllEntries(const Account& account) const noexcept {
    return config_.max_entries_per_user != 0 && account.user != nullptr && account.user->entries >= config_.max_entries_per_user;
  }
  // Whether a user may have so many more descriptors. What DescriptorQuota::CheckUser says.
  [[nodiscard]] Status CheckUserDescriptors(std::uint32_t uid, std::uint64_t more) const {
    return descriptors_.CheckUser(uid, more, max_fds(), config_.domain_mode != DomainMode::kUid);
  }
  // How many of `entries` an account may have before others' go first. Users share alike, and so do
  // the clients of a user; what kvmd keeps itself is one user more.
  std::uint64_t ShareOf(const Account& account, std::uint64_t entries) const noexcept;
  // Whether the domain may have so many more descriptors. What DescriptorQuota::Check says.
  [[nodiscard]] Status CheckDescriptors(std::uint64_t more) const { return descriptors_.Check(fds(), more, max_fds()); }

  // Adds a region that belongs to no account, and its entries, to the client's account.
  void Join(Region& region, ClientId client);
  // Takes a region out of the account of Region::owner. That account is destroyed if this was its
  // last region.
  void Leave(Region& region) noexcept;
  // Moves a region from the account of Region::owner to the client's. The caller sets
  // Region::owner.
  void Move(Region& region, ClientId client);

  std::size_t size() const noexcept { return accounts_.size(); }
  std::uint64_t fds() const noexcept;     // that kvmd keeps for regions and slabs
  std::uint64_t blocks() const noexcept;  // of all regions, published or not
  std::uint64_t max_fds() const noexcept {
    return config_.max_fds_per_domain != 0 ? config_.max_fds_per_domain : descriptors_.max_of_domain();
  }

 private:
  void Add(ClientId client, Account& account, const Region& region);
  void Remove(ClientId client, Account& account, const Region& region) noexcept;

  const Config& config_;
  DescriptorQuota& descriptors_;
  std::map<ClientId, Account> accounts_;
  std::map<std::uint32_t, UserAccount> users_;  // kvmd is none
  bool keeps_ = false;                          // kvmd has an account, too
};

}  // namespace kvm::daemon
