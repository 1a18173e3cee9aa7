#include "daemon/registry/accounts.h"

#include "daemon/registry/quota_error.h"

namespace kvm::daemon {

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

void Accounts::Add(Account& account, const Region& region) {
  account.regions += 1;
  account.blocks += region.info.block_count;
  account.fds += region.descriptors();
  account.entries += region.entries;
  descriptors_.Add(region.descriptors());
}

void Accounts::Remove(ClientId client, Account& account, const Region& region) noexcept {
  account.blocks -= region.info.block_count;
  account.fds -= region.descriptors();
  account.entries -= region.entries;
  descriptors_.Remove(region.descriptors());
  if (--account.regions == 0) accounts_.erase(client);
}

void Accounts::Join(Region& region, ClientId client) {
  region.account = &accounts_[client];
  Add(*region.account, region);
}

void Accounts::Leave(Region& region) noexcept {
  Remove(region.owner, *region.account, region);
  region.account = nullptr;
}

void Accounts::Move(Region& region, ClientId client) {
  // Added first and removed then, since both may be the same account, which must not become empty.
  Account& to = accounts_[client];
  Add(to, region);
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
