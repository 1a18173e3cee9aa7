#include "daemon/broker/lessor.h"

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

Result<Lease*> Lessor::Grant(ClientId client, Domain& domain, std::uint32_t ttl_ms) {
  if (Status sound = CheckTtl(ttl_ms); !sound) return sound.error();
  if (UsageOf(client).leases >= config_.max_leases_per_client)
    return Exhausted("lease: too many leases of one client", config_.max_leases_per_client, "--max-leases-per-client");
  auto lease = std::make_unique<Lease>();
  lease->id = next_++;
  lease->client = client;
  lease->domain = &domain;
  lease->deadline = Until(ttl_ms);
  ++of_client_[client].leases;
  ++of_domain_[&domain].leases;
  by_deadline_.emplace(lease->deadline, lease->id);
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
    const std::uint64_t cache = config_.host_cache_bytes * share.percent / 100, entries = config_.max_entries * share.percent / 100;
    if (region.filler != nullptr && share.usage.cache_bytes + bytes > cache)
      return Exhausted("lease: bytes of the host cache held by leases of " + std::string(share.of), cache, share.option);
    if (&share.usage != &total_ && share.usage.blocks + 1 > entries)
      return Exhausted("lease: blocks held by leases of " + std::string(share.of), entries, share.option);
  }
  if (region.orphan && region.pinned.empty() && lease.domain->leased_orphans() >= MaxLeasedOrphans(config_))
    return Exhausted("lease: too many dead workers' regions held", MaxLeasedOrphans(config_), "--max-leased-orphans");
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

// Unpins all but the first `blocks`. A lease without blocks is removed.
void Lessor::Cut(Lease& lease, std::size_t blocks) {
  while (lease.blocks.size() > blocks) {
    Spend(2);
    const LeasedBlock& last = lease.blocks.back();
    if (Region* region = lease.domain->FindRegion(last.row, last.region_epoch)) lease.domain->Unpin(*region, last.block);
    Count(lease, last, false);
    lease.blocks.pop_back();
  }
  if (!lease.blocks.empty()) return;
  if (--of_client_[lease.client].leases == 0) of_client_.erase(lease.client);
  if (--of_domain_[lease.domain].leases == 0) of_domain_.erase(lease.domain);
  by_deadline_.erase({lease.deadline, lease.id});
  leases_.erase(lease.id);
}

void Lessor::Expire(SteadyTime now) {
  while (!by_deadline_.empty() && by_deadline_.begin()->first <= now) {
    Lease& lease = *leases_.at(by_deadline_.begin()->second);
    LogLimited(LogLevel::kDebug, "lease_expired", {{"lease", lease.id}, {"client", lease.client}});
    Revoke(lease);
  }
}

void Lessor::RevokeAllOf(ClientId client) {
  if (!of_client_.contains(client)) return;
  for (auto next = leases_.begin(); next != leases_.end();) {
    Lease& lease = *(next++)->second;
    if (lease.client == client) Revoke(lease);
  }
}

std::uint32_t Lessor::CutOff(const Domain& domain, const Region& region, const std::function<void(const Lease&, std::size_t)>& losing) {
  std::uint32_t cut = 0;
  if (!of_domain_.contains(&domain)) return cut;
  for (auto next = leases_.begin(); next != leases_.end();) {
    Lease& lease = *(next++)->second;
    if (lease.domain != &domain) continue;
    Spend(1 + lease.blocks.size() / 8);
    const auto first = std::find_if(lease.blocks.begin(), lease.blocks.end(), [&](const LeasedBlock& block) {
      return block.row == region.row && block.region_epoch == region.info.region_epoch;
    });
    if (first == lease.blocks.end()) continue;
    const auto left = static_cast<std::size_t>(first - lease.blocks.begin());
    losing(lease, left);
    Cut(lease, left);
    ++cut;
  }
  return cut;
}

Lessor::Usage Lessor::UsageOf(ClientId client) const { return UsageIn(of_client_, client); }
Lessor::Usage Lessor::UsageOf(const Domain& domain) const { return UsageIn(of_domain_, &domain); }

}  // namespace kvm::daemon
