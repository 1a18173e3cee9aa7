#include "daemon/broker/status/status.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "daemon/broker/status/host_cache_shares.h"
#include "daemon/broker/status/memory_groups.h"
#include "daemon/system/option_names.h"
#include "daemon/system/process_info.h"
#include "daemon/system/work_meter.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
namespace {

// The lists of domains, clients, leases and orphans end where the reply would leave its frame.
constexpr WorkUnits kDescriptionUnits = 32;  // of one thing that is listed
constexpr std::size_t kMaxListBytes = kMaxFrameBytes - 64 * 1024;

std::uint64_t MillisecondsUntil(SteadyTime time) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(time - std::chrono::steady_clock::now()).count();
  return static_cast<std::uint64_t>(std::max<std::int64_t>(left, 0));
}

void Describe(const HostCache& host_cache, const Config& config, const HostCache::Usage& all, kvmwire::HostCacheStatus& status) {
  status.set_max_bytes(host_cache.max_bytes());
  status.set_bytes(all.bytes);
  status.set_slab_bytes(host_cache.slab_bytes());
  status.set_policy(std::string(policy::PolicyName(config.host_cache_policy)));
  status.set_admission(std::string(AdmissionName(config.host_cache_admission)));
  status.set_huge_bytes(all.huge_bytes);
  status.set_transparent_bytes(all.transparent_bytes);
}

void Describe(const layout::Counters& counters, kvmwire::RegistryCounters& out) {
  const auto value = [](const std::atomic<std::uint64_t>& counter) { return counter.load(std::memory_order_relaxed); };
  out.set_published(value(counters.published));
  out.set_replaced(value(counters.replaced));
  out.set_retracted(value(counters.retracted));
  out.set_swept(value(counters.swept));
  out.set_reaped(value(counters.reaped));
  out.set_evicted(value(counters.evicted));
  out.set_refused_full(value(counters.refused_full));
  out.set_refused_replicas(value(counters.refused_replicas));
  out.set_refused_stale(value(counters.refused_stale));
}

void Describe(const HostCache& host_cache, const Domain& domain, kvmwire::HostCacheDomain& status) {
  const HostCache::Usage usage = host_cache.UsageOf(&domain);
  const HostCache::Counters counters = host_cache.CountersOf(domain);
  status.set_bytes(usage.bytes);
  status.set_used_bytes(usage.used_bytes);
  status.set_slabs(usage.slabs);
  status.set_blocks(usage.blocks);
  status.set_hits(counters.hits);
  status.set_stored(counters.stored);
  status.set_evicted(counters.evicted);
  status.set_refused(counters.refused);
  status.set_expired(counters.expired);
}

std::string KeyBytes(const BlockKey& key) {
  std::string bytes(2 * sizeof(std::uint64_t), '\0');
  std::memcpy(bytes.data(), &key.lo, sizeof(key.lo));
  std::memcpy(bytes.data() + sizeof(key.lo), &key.hi, sizeof(key.hi));
  return bytes;
}

class StatusBuilder {
 public:
  StatusBuilder(const StatusSources& sources, const Client& asking, kvmwire::StatusReply& reply, std::size_t& bytes)
      : sources_(sources),
        asking_(asking),
        sees_all_(asking.credentials.uid == 0 || asking.credentials.uid == ::geteuid()),
        own_(asking.domain != nullptr ? asking.domain : sources.domains.FindFor(asking.credentials)),
        reply_(reply),
        bytes_(bytes) {}

  void DescribeDaemon();
  void AddDomain(Domain& domain, const kvmwire::StatusQuery& query) {
    if (!MaySee(domain) || Full()) return;
    kvmwire::DomainStatus& described = *reply_.add_domains();
    Count(Describe(domain, described));
    if (query.memory()) DescribeMemory(domain, described);
    if (query.models()) DescribeModels(domain, described);
    if (query.hot() > 0) DescribeHot(domain, query.hot(), described);
    if (query.host_cache() && described.has_host_cache()) DescribeShares(domain, *described.mutable_host_cache());
  }
  void AddClient(const Client& client, const kvmwire::StatusQuery& query) {
    if (client.domain == nullptr || !MaySee(*client.domain) || Full()) return;
    kvmwire::ClientStatus& described = *reply_.add_client_list();
    Describe(client, described);
    if (!query.details()) {
      described.mutable_stats()->clear_recent_misses();
      described.mutable_stats()->clear_traffic();
    }
    Count(described);
  }
  void AddLease(const Lease& lease) {
    if (MaySee(*lease.domain) && !Full()) Count(Describe(lease, *reply_.add_lease_list()));
  }
  void AddOrphans(Domain& domain) {
    if (!MaySee(domain)) return;
    for (const Region* region : domain.Orphans()) {
      if (!Full()) Count(Describe(domain, *region, *reply_.add_orphan_list()));
    }
  }

 private:
  bool MaySee(const Domain& domain) const { return sees_all_ || &domain == own_; }
  bool Full() {
    Spend(1);
    if (bytes_ > kMaxListBytes) reply_.set_lists_cut(true);
    return bytes_ > kMaxListBytes;
  }
  void Count(const google::protobuf::MessageLite& listed) {
    Spend(kDescriptionUnits);
    bytes_ += listed.ByteSizeLong() + 8;
  }

  void DescribeMemory(Domain& domain, kvmwire::DomainStatus& out);
  void DescribeModels(Domain& domain, kvmwire::DomainStatus& out);
  void DescribeHot(Domain& domain, std::size_t most, kvmwire::DomainStatus& out);
  void DescribeShares(Domain& domain, kvmwire::HostCacheDomain& out);
  const kvmwire::DomainStatus& Describe(Domain& domain, kvmwire::DomainStatus& out) const;
  const kvmwire::ClientStatus& Describe(const Client& client, kvmwire::ClientStatus& out) const;
  const kvmwire::LeaseStatus& Describe(const Lease& lease, kvmwire::LeaseStatus& out) const;
  const kvmwire::OrphanStatus& Describe(const Domain& domain, const Region& region, kvmwire::OrphanStatus& out) const;

  const StatusSources& sources_;
  const Client& asking_;
  const bool sees_all_;
  const Domain* const own_;  // a monitor's: that of its user; null: there is none
  kvmwire::StatusReply& reply_;
  std::size_t& bytes_;
};

void StatusBuilder::DescribeDaemon() {
  const Config& config = sources_.config;
  reply_.set_server_version(KVM_VERSION);
  reply_.set_pid(static_cast<std::uint32_t>(::getpid()));
  reply_.set_started_ms(sources_.started_ms);
  reply_.set_max_clients(config.max_clients);
  reply_.set_max_clients_per_user(ConnectionsPerUser(config));
  const auto of_user = static_cast<std::uint32_t>(sources_.clients.OfUser(asking_.credentials.uid));
  reply_.set_user_clients(of_user);
  reply_.set_max_retained_fds(sources_.domains.descriptors().max());
  reply_.set_keeps_state(sources_.keeps_state);
  // What all have together would tell one user of the others.
  reply_.set_clients(sees_all_ ? static_cast<std::uint32_t>(sources_.clients.size()) : of_user);
  if (sees_all_) {
    reply_.set_resident_bytes(ResidentBytes());
    reply_.set_open_fds(OpenFds());
    reply_.set_rejected_connections(sources_.rejected_connections);
    reply_.set_protocol_errors(sources_.protocol_errors);
    reply_.set_retained_fds(sources_.domains.descriptors().kept());
  }
  if (sources_.host_cache != nullptr) {
    HostCache::Usage usage;
    if (sees_all_ || own_ != nullptr) usage = sources_.host_cache->UsageOf(sees_all_ ? nullptr : own_);
    kvm::daemon::Describe(*sources_.host_cache, config, usage, *reply_.mutable_host_cache());
  }
}

void StatusBuilder::DescribeMemory(Domain& domain, kvmwire::DomainStatus& out) {
  for (kvmwire::MemoryGroup& group : GroupMemory(domain)) {
    if (Full()) return;
    Count(*out.add_memory() = std::move(group));
  }
}

void StatusBuilder::DescribeModels(Domain& domain, kvmwire::DomainStatus& out) {
  domain.models().ForEach([&](std::uint32_t row) {
    if (Full()) return;
    kvmwire::ModelTotals& described = *out.add_model_totals();
    described.set_model_id(domain.models().spec(row).model_id);
    const Fingerprint& fingerprint = domain.models().fingerprint(row);
    described.set_fingerprint(fingerprint.bytes.data(), fingerprint.bytes.size());
    *described.mutable_counters() = domain.models().totals(row);
    Count(described);
  });
}

void StatusBuilder::DescribeHot(Domain& domain, std::size_t most, kvmwire::DomainStatus& out) {
  for (const HotPrefixes::Prefix& prefix : domain.hot.List(most, std::chrono::steady_clock::now())) {
    if (Full()) return;
    kvmwire::HotPrefix& described = *out.add_hot();
    described.set_key(KeyBytes(prefix.key));
    described.set_depth(prefix.depth);
    described.set_uses(prefix.uses);
    described.set_blocks(prefix.blocks);
    described.set_model_id(prefix.model_id);
    Count(described);
  }
}

void StatusBuilder::DescribeShares(Domain& domain, kvmwire::HostCacheDomain& out) {
  for (kvmwire::HostCacheShare& share : ShareHostCache(domain)) {
    if (Full()) return;
    Count(*out.add_shares() = std::move(share));
  }
}

const kvmwire::DomainStatus& StatusBuilder::Describe(Domain& domain, kvmwire::DomainStatus& out) const {
  const Config& config = sources_.config;
  out.set_name(domain.name());
  out.set_epoch(domain.segment().header().epoch);
  out.set_entries(domain.entries());
  out.set_max_entries(config.max_entries);
  out.set_regions(domain.live_regions());
  out.set_max_regions(config.max_regions);
  out.set_models(domain.models().live());
  out.set_max_models(config.max_models);
  out.set_clients(domain.clients);
  out.set_segment_bytes(domain.segment().size());
  if (sources_.host_cache != nullptr) kvm::daemon::Describe(*sources_.host_cache, domain, *out.mutable_host_cache());
  out.set_orphans(domain.orphans());
  out.set_orphan_bytes(domain.orphan_bytes());
  out.set_fds(domain.fds());
  out.set_max_fds(domain.max_fds());
  const Lessor::Usage leased = sources_.lessor.UsageOf(domain);
  out.set_leases(leased.leases);
  out.set_leased_blocks(leased.blocks);
  out.set_leased_bytes(leased.bytes);
  out.set_leased_orphans(domain.leased_orphans());
  out.set_marked_keys(domain.marks().size());
  kvm::daemon::Describe(domain.segment().header().counters, *out.mutable_counters());
  *out.mutable_client_totals() = domain.client_totals;
  return out;
}

const kvmwire::ClientStatus& StatusBuilder::Describe(const Client& client, kvmwire::ClientStatus& out) const {
  out.set_client_id(client.id);
  out.set_name(client.name);
  out.set_pid(client.credentials.pid);
  out.set_process_not_watched(!client.process->known());
  out.set_uid(client.credentials.uid);
  out.set_domain(client.domain->name());
  out.set_role(client.role);
  out.set_connected_ms(client.connected_ms);
  const Account account = client.domain->AccountOf(client.id);
  out.set_regions(account.regions);
  out.set_entries(account.entries);
  out.set_fds(account.fds);
  const Lessor::Usage leased = sources_.lessor.UsageOf(client.id);
  out.set_leases(leased.leases);
  out.set_leased_bytes(leased.bytes);
  out.set_marked_keys(client.domain->marks().OfClient(client.id));
  out.set_queued_bytes(client.connection->queued_bytes());
  *out.mutable_stats() = client.stats;
  if (sources_.host_cache != nullptr) out.set_host_cache_bytes(sources_.host_cache->BytesOf(client.id));
  return out;
}

const kvmwire::LeaseStatus& StatusBuilder::Describe(const Lease& lease, kvmwire::LeaseStatus& out) const {
  out.set_lease(lease.id);
  out.set_client_id(lease.client);
  if (const Client* holder = sources_.clients.Find(lease.client)) {
    out.set_client_name(holder->name);
    out.set_pid(holder->credentials.pid);
    out.set_uid(holder->credentials.uid);
  }
  out.set_domain(lease.domain->name());
  out.set_model_id(lease.domain->models().spec(lease.model).model_id);
  out.set_blocks(static_cast<std::uint32_t>(lease.blocks.size()));
  std::uint64_t bytes = 0;
  std::uint32_t cached = 0;
  Spend(lease.blocks.size() / 16);
  for (const LeasedBlock& block : lease.blocks) {
    bytes += block.bytes;
    cached += block.cached;
  }
  out.set_bytes(bytes);
  out.set_host_cache_blocks(cached);
  out.set_left_ms(MillisecondsUntil(lease.deadline));
  return out;
}

const kvmwire::OrphanStatus& StatusBuilder::Describe(const Domain& domain, const Region& region, kvmwire::OrphanStatus& out) const {
  out.set_region(region.descriptor.name());
  out.set_domain(domain.name());
  out.set_owner_pid(region.info.owner_pid);
  out.set_owner_uid(region.info.owner_uid);
  out.set_bytes(region.segment_bytes());
  out.set_host_memory(region.info.handle_kind == static_cast<std::uint32_t>(layout::HandleKind::kHostMemfd));
  out.set_left_ms(MillisecondsUntil(region.orphan->since + std::chrono::seconds(sources_.config.orphan_ttl_s)));
  out.set_leased(!region.pinned.empty());
  out.set_owner_runs(!region.orphan->process->Ended());
  return out;
}

}  // namespace

StatusAnswer::StatusAnswer(StatusSources sources, kvmwire::StatusQuery query) : sources_(sources), query_(std::move(query)) {}

bool StatusAnswer::GoOn(const Client& asking, const WorkBudget& budget) {
  StatusBuilder builder(sources_, asking, reply_, bytes_);
  if (!std::exchange(begun_, true)) {
    builder.DescribeDaemon();
    bytes_ = reply_.ByteSizeLong();
  }
  while (Domain* domain = sources_.domains.After(domain_)) {
    if (budget.used_up()) return false;
    builder.AddDomain(*domain, query_);
    domain_ = domain->name();
  }
  while (const Client* client = query_.clients() ? sources_.clients.After(client_) : nullptr) {
    if (budget.used_up()) return false;
    builder.AddClient(*client, query_);
    client_ = client->id;
  }
  const auto& leases = sources_.lessor.all();
  for (auto next = leases.upper_bound(lease_); query_.leases() && next != leases.end(); ++next) {
    if (budget.used_up()) return false;
    builder.AddLease(*next->second);
    lease_ = next->first;
  }
  while (Domain* domain = query_.orphans() ? sources_.domains.After(orphans_of_) : nullptr) {
    if (budget.used_up()) return false;
    builder.AddOrphans(*domain);
    orphans_of_ = domain->name();
  }
  return true;
}

}  // namespace kvm::daemon
