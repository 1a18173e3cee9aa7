#include "daemon/broker/services/lessor.h"

#include <algorithm>
#include <string>

#include "daemon/registry/quota_error.h"
#include "daemon/system/log.h"

namespace kvm::daemon {
namespace {

// How many orphans of a domain leases may keep, so that there is still room for other orphans.
std::uint32_t MaxLeasedOrphans(const Config& config) {
  if (config.max_leased_orphans != 0) return config.max_leased_orphans;
  return std::max(1u, std::min(config.max_orphans / 2, config.max_regions / 4));
}

std::uint32_t LeasesPerUser(const Config& config) {
  return config.max_leases_per_user != 0 ? config.max_leases_per_user : 16 * config.max_leases_per_client;
}

SteadyTime Until(std::uint32_t ttl_ms) { return std::chrono::steady_clock::now() + std::chrono::milliseconds(ttl_ms); }

template <class Map, class Key>
Lessor::Usage UsageIn(const Map& usages, const Key& key) {
  const auto found = usages.find(key);
  return found == usages.end() ? Lessor::Usage{} : found->second;
}

void Change(Lessor::Usage& usage, const LeasedBlock& block, bool held) {
  const std::uint64_t cached = block.cached ? block.bytes : 0;
  if (held) {
    ++usage.blocks;
    usage.bytes += block.bytes;
    usage.cache_bytes += cached;
  } else {
    --usage.blocks;
    usage.bytes -= block.bytes;
    usage.cache_bytes -= cached;
  }
}

}  // namespace

Status Lessor::CheckTtl(std::uint32_t ttl_ms) const {
  if (ttl_ms == 0) return MakeError(Errc::kInvalidArgument, "lease: a lease needs a time to live");
  if (ttl_ms > std::uint64_t{config_.max_lease_ttl_s} * 1000) {
    return MakeError(Errc::kInvalidArgument, "lease: " + std::to_string(ttl_ms) + " ms are asked for, " +
                                                 std::to_string(config_.max_lease_ttl_s) + " s are the most (--max-lease-ttl-s)");
  }
  return {};
}

Result<Lease*> Lessor::Grant(ClientId client, std::uint32_t uid, Domain& domain, std::uint32_t ttl_ms) {
  if (Status sound = CheckTtl(ttl_ms); !sound) return sound.error();
  if (UsageOf(client).leases >= config_.max_leases_per_client)
    return Exhausted("lease: too many leases of one client", config_.max_leases_per_client, "--max-leases-per-client");
  const auto user = of_user_.find(uid);
  if (user != of_user_.end() && user->second >= LeasesPerUser(config_))
    return Exhausted("lease: too many leases of user " + std::to_string(uid), LeasesPerUser(config_), "--max-leases-per-user");
  auto lease = std::make_unique<Lease>();
  lease->id = next_++;
  lease->client = client;
  lease->uid = uid;
  lease->domain = &domain;
  lease->deadline = Until(ttl_ms);
  ++of_client_[client].leases;
  ++of_domain_[&domain].leases;
  ++of_user_[uid];
  by_deadline_.emplace(lease->deadline, lease->id);
  by_client_.emplace(client, lease->id);
  return leases_.emplace(lease->id, std::move(lease)).first->second.get();
}

Result<Lease*> Lessor::Find(ClientId client, LeaseId id) {
  const auto found = leases_.find(id);
  if (found == leases_.end() || found->second->client != client)
    return MakeError(Errc::kNotFound, "lease: no such lease of this client (it may have ended)");
  return found->second.get();
}

Status Lessor::CheckLimits(const Lease& lease, const Region& region) const {
  const Usage client = UsageOf(lease.client), domain = UsageOf(*lease.domain);
  const std::uint64_t bytes = region.info.block_bytes;
  struct Share {
    const char* of;
    const Usage& usage;
    std::uint32_t percent;
    const char* option;
  };
  const Share shares[] = {{"this client", client, config_.max_leased_percent_per_client, "--max-leased-percent-per-client"},
                          {"this domain", domain, config_.max_leased_percent_per_domain, "--max-leased-percent-per-domain"},
                          {"all", total_, config_.max_leased_percent, "--max-leased-percent"}};
  for (const Share& share : shares) {
    const std::uint64_t cache = config_.host_cache_bytes * share.percent / 100,
                        entries = lease.domain->config().max_entries * share.percent / 100;
    if (region.filler != nullptr && share.usage.cache_bytes + bytes > cache)
      return Exhausted("lease: bytes of the host cache held by leases of " + std::string(share.of), cache, share.option);
    if (&share.usage != &total_ && share.usage.blocks + 1 > entries)
      return Exhausted("lease: blocks held by leases of " + std::string(share.of), entries, share.option);
  }
  if (region.orphan && region.pinned.empty() && lease.domain->leased_orphans() >= MaxLeasedOrphans(lease.domain->config()))
    return Exhausted("lease: too many dead workers' regions held", MaxLeasedOrphans(lease.domain->config()), "--max-leased-orphans");
  return {};
}

Status Lessor::Add(Lease& lease, const kvmwire::LeaseSource& source) {
  Spend(4);
  const Result<Domain::RetainedBlock> kept = lease.domain->FindRetained(source);
  if (!kept) return kept.error();
  Region& region = *kept->region;
  if (Status allowed = CheckLimits(lease, region); !allowed) return allowed;
  if (!lease.domain->Pin(region, kept->block)) return MakeError(Errc::kStale, "lease: the block has just been given up");
  if (lease.blocks.empty()) lease.model = region.info.model;
  if (lease.first_of.try_emplace({region.row, region.info.region_epoch}, lease.blocks.size()).second)
    by_region_[{lease.domain, region.row, region.info.region_epoch}].insert(lease.id);
  lease.blocks.push_back({region.row, region.info.region_epoch, kept->block, region.filler != nullptr, region.info.block_bytes});
  Count(lease, lease.blocks.back(), true);
  return {};
}

void Lessor::Count(const Lease& lease, const LeasedBlock& block, bool held) {
  Change(of_client_[lease.client], block, held);
  Change(of_domain_[lease.domain], block, held);
  Change(total_, block, held);
}

Status Lessor::Renew(Lease& lease, std::uint32_t ttl_ms) {
  if (Status sound = CheckTtl(ttl_ms); !sound) return sound;
  by_deadline_.erase({lease.deadline, lease.id});
  lease.deadline = Until(ttl_ms);
  by_deadline_.emplace(lease.deadline, lease.id);
  return {};
}

// Takes all but the first `blocks` off. A lease without blocks is removed.
void Lessor::Cut(Lease& lease, std::size_t blocks) {
  const ClientId client = lease.client;
  const Domain* const domain = lease.domain;
  if (lease.blocks.size() > blocks) {
    Lease& lost = lost_.emplace_back();
    lost.client = client;
    lost.domain = lease.domain;
    if (blocks == 0) {
      lost.blocks = std::move(lease.blocks);
      lease.blocks.clear();
    } else {
      Spend((lease.blocks.size() - blocks) / 16);
      const auto from = lease.blocks.begin() + static_cast<std::ptrdiff_t>(blocks);
      lost.blocks.assign(from, lease.blocks.end());
      lease.blocks.erase(from, lease.blocks.end());
    }
    Spend(4 * lease.first_of.size());
    std::erase_if(lease.first_of, [&](const auto& entry) {
      if (entry.second < blocks) return false;
      const auto others = by_region_.find({lease.domain, entry.first.first, entry.first.second});
      if (others != by_region_.end() && others->second.erase(lease.id) != 0 && others->second.empty()) by_region_.erase(others);
      return true;
    });
  }
  if (!lease.blocks.empty()) return;
  --of_client_[client].leases;
  --of_domain_[domain].leases;
  if (const auto user = of_user_.find(lease.uid); --user->second == 0) of_user_.erase(user);
  by_client_.erase({client, lease.id});
  by_deadline_.erase({lease.deadline, lease.id});
  leases_.erase(lease.id);
  DropUnused(client, domain);
}

void Lessor::DropUnused(ClientId client, const Domain* domain) {
  const auto unused = [](const Usage& usage) { return usage.leases == 0 && usage.blocks == 0; };
  if (const auto found = of_client_.find(client); found != of_client_.end() && unused(found->second)) of_client_.erase(found);
  if (const auto found = of_domain_.find(domain); found != of_domain_.end() && unused(found->second)) of_domain_.erase(found);
}

bool Lessor::CutSome(const WorkBudget& budget) {
  for (; !cuts_.empty(); cuts_.pop_front()) {
    RegionCut& cut = cuts_.front();
    while (!cut.leases.empty()) {
      if (budget.used_up()) return true;
      Spend(4);
      const auto found = leases_.find(*cut.leases.begin());
      cut.leases.erase(cut.leases.begin());
      if (found == leases_.end()) continue;
      Lease& lease = *found->second;
      // Another cut may have taken these blocks off.
      const auto first = lease.first_of.find({cut.row, cut.region_epoch});
      if (first == lease.first_of.end()) continue;
      const std::size_t left = first->second;
      losing_(lease, cut, left);
      Cut(lease, left);
    }
  }
  return false;
}

bool Lessor::Work(const WorkBudget& budget) {
  if (CutSome(budget) || RevokeSome(budget)) return true;
  for (; !lost_.empty(); lost_.pop_front()) {
    Lease& lost = lost_.front();
    while (!lost.blocks.empty()) {
      if (budget.used_up()) return true;
      Spend(2);
      const LeasedBlock& last = lost.blocks.back();
      if (Region* region = lost.domain->FindRegion(last.row, last.region_epoch)) lost.domain->Unpin(*region, last.block);
      Count(lost, last, false);
      lost.blocks.pop_back();
    }
    DropUnused(lost.client, lost.domain);
  }
  return false;
}

void Lessor::RevokeAllOf(ClientId client) {
  const auto first = by_client_.lower_bound({client, 0});
  if (first != by_client_.end() && first->first == client) gone_.push_back(client);
}

// True: there are more.
bool Lessor::RevokeSome(const WorkBudget& budget) {
  for (; !gone_.empty(); gone_.pop_front()) {
    const ClientId client = gone_.front();
    for (auto next = by_client_.lower_bound({client, 0}); next != by_client_.end() && next->first == client;) {
      if (budget.used_up()) return true;
      Spend(4);
      Revoke(*leases_.at((next++)->second));
    }
  }
  while (!by_deadline_.empty() && by_deadline_.begin()->first <= now_) {
    if (budget.used_up()) return true;
    Spend(4);
    Lease& lease = *leases_.at(by_deadline_.begin()->second);
    LogLimited(LogLevel::kDebug, "lease_expired", {{"lease", lease.id}, {"client", lease.client}});
    Revoke(lease);
  }
  return false;
}

std::uint32_t Lessor::CutOff(const Domain& domain, const Region& region, const char* why) {
  auto found = by_region_.extract({&domain, region.row, region.info.region_epoch});
  if (found.empty()) return 0;
  const auto leases = static_cast<std::uint32_t>(found.mapped().size());
  cuts_.push_back({&domain, region.row, region.info.region_epoch, region.descriptor.name(), why, std::move(found.mapped())});
  return leases;
}

Lessor::Usage Lessor::UsageOf(ClientId client) const { return UsageIn(of_client_, client); }
Lessor::Usage Lessor::UsageOf(const Domain& domain) const { return UsageIn(of_domain_, &domain); }

}  // namespace kvm::daemon
