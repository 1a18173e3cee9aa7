#include "daemon/registry/accounts.h"

#include <algorithm>
#include <optional>
#include <string>

#include "daemon/registry/quota_error.h"

namespace kvm::daemon {
namespace {

std::optional<std::uint32_t> UserOf(const Account& account) noexcept { return account.own ? std::nullopt : std::optional(account.uid); }

}  // namespace

Account Accounts::Of(ClientId client) const {
  const auto found = accounts_.find(client);
  return found == accounts_.end() ? Account{} : found->second;
}

Status Accounts::Check(ClientId client, std::uint64_t blocks, std::size_t fds) const {
  if (client == kNoClient) return {};  // kvmd's own
  const Account account = Of(client);
  if (account.regions >= config_.max_regions_per_client)
    return Exhausted("too many regions of one client", config_.max_regions_per_client, "--max-regions-per-client");
  if (account.fds + fds > config_.max_fds_per_client)
    return Exhausted("too many descriptors of one client", config_.max_fds_per_client, "--max-fds-per-client");
  if (account.blocks + blocks > config_.max_blocks_per_client)
    return Exhausted("too many blocks of one client", config_.max_blocks_per_client, "--max-blocks-per-client");
  return {};
}

Accounts::~Accounts() {
  for (const auto& [client, account] : accounts_) descriptors_.Remove(account.fds, UserOf(account));
}

Status Accounts::CheckUser(ClientId client, std::uint32_t uid, std::uint64_t blocks, std::size_t fds) const {
  if (client == kNoClient) return {};
  const auto found = users_.find(uid);
  const UserAccount user = found == users_.end() ? UserAccount{} : found->second;
  const std::string whose = " of user " + std::to_string(uid);
  if (user.regions >= RegionsPerUser(config_))
    return Exhausted("too many regions" + whose, RegionsPerUser(config_), "--max-regions-per-user");
  if (user.blocks + blocks > BlocksPerUser(config_))
    return Exhausted("too many blocks" + whose, BlocksPerUser(config_), "--max-blocks-per-user");
  return CheckUserDescriptors(uid, fds);
}

std::uint64_t Accounts::ShareOf(const Account& account, std::uint64_t entries) const noexcept {
  if (users_.size() <= 1) return entries / std::max<std::size_t>(accounts_.size(), 1);
  const std::uint64_t of_user = entries / (users_.size() + (keeps_ ? 1 : 0));
  const auto user = account.own ? users_.end() : users_.find(account.uid);
  return user == users_.end() ? of_user : of_user / std::max(user->second.clients, 1u);
}

void Accounts::Add(ClientId client, Account& account, const Region& region) {
  if (account.regions == 0) {
    account.own = client == kNoClient;
    account.uid = region.info.owner_uid;
    keeps_ = keeps_ || account.own;
    if (!account.own) {
      account.user = &users_[account.uid];
      ++account.user->clients;
    }
  }
  if (account.user != nullptr) {
    ++account.user->regions;
    account.user->blocks += region.info.block_count;
    account.user->entries += region.entries;
  }
  account.regions += 1;
  account.blocks += region.info.block_count;
  account.fds += region.descriptors();
  account.entries += region.entries;
  descriptors_.Add(region.descriptors(), UserOf(account));
}

void Accounts::Remove(ClientId client, Account& account, const Region& region) noexcept {
  account.blocks -= region.info.block_count;
  account.fds -= region.descriptors();
  account.entries -= region.entries;
  descriptors_.Remove(region.descriptors(), UserOf(account));
  if (UserAccount* user = account.user) {
    --user->regions;
    user->blocks -= region.info.block_count;
    user->entries -= region.entries;
    user->clients -= account.regions == 1 ? 1 : 0;
    if (user->clients == 0) users_.erase(account.uid);
  }
  if (account.regions == 1 && account.own) keeps_ = false;
  if (--account.regions == 0) accounts_.erase(client);
}

void Accounts::Join(Region& region, ClientId client) {
  region.account = &accounts_[client];
  Add(client, *region.account, region);
}

void Accounts::Leave(Region& region) noexcept {
  Remove(region.owner, *region.account, region);
  region.account = nullptr;
}

void Accounts::Move(Region& region, ClientId client) {
  // Added first and removed then, since both may be the same account, which must not become empty.
  Account& to = accounts_[client];
  Add(client, to, region);
  Remove(region.owner, *region.account, region);
  region.account = &to;
}

std::uint64_t Accounts::fds() const noexcept {
  std::uint64_t fds = 0;
  for (const auto& [client, account] : accounts_) fds += account.fds;
  return fds;
}

std::uint64_t Accounts::blocks() const noexcept {
  std::uint64_t blocks = 0;
  for (const auto& [client, account] : accounts_) blocks += account.blocks;
  return blocks;
}

}  // namespace kvm::daemon
