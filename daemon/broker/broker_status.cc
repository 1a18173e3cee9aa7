// Answers StatusQuery: what kvmd knows of itself, its domains and its clients.
#include <unistd.h>

#include <algorithm>

#include "daemon/broker/broker.h"
#include "daemon/system/process_info.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
namespace {

// The lists of domains, clients, leases and orphans end where the reply would leave its frame.
constexpr std::size_t kMaxListBytes = kMaxFrameBytes - 64 * 1024;

}  // namespace

void Broker::DescribeOrphan(const Domain& domain, const Region& region, kvmwire::OrphanStatus& out) const {
  out.set_region(region.descriptor.name());
  out.set_domain(domain.name());
  out.set_owner_pid(region.info.owner_pid);
  out.set_owner_uid(region.info.owner_uid);
  out.set_bytes(region.segment_bytes());
  out.set_host_memory(region.info.handle_kind == static_cast<std::uint32_t>(layout::HandleKind::kHostMemfd));
  const auto ends = region.orphan->since + std::chrono::seconds(config_.orphan_ttl_s);
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(ends - std::chrono::steady_clock::now()).count();
  out.set_left_ms(static_cast<std::uint64_t>(std::max<std::int64_t>(left, 0)));
  out.set_leased(!region.pinned.empty());
  out.set_owner_runs(!region.orphan->process->Ended());
}

void Broker::HandleStatusQuery(Client& asking, const kvmwire::ClientMessage& message) {
  kvmwire::ServerMessage message_out;
  message_out.set_request_id(message.request_id());
  kvmwire::StatusReply& reply = *message_out.mutable_status_reply();
  const bool sees_all = asking.credentials.uid == 0 || asking.credentials.uid == ::geteuid();
  reply.set_server_version(KVM_VERSION);
  reply.set_pid(static_cast<std::uint32_t>(::getpid()));
  reply.set_started_ms(started_ms_);
  reply.set_resident_bytes(ResidentBytes());
  reply.set_open_fds(OpenFds());
  reply.set_clients(static_cast<std::uint32_t>(clients_.size()));
  reply.set_max_clients(config_.max_clients);
  reply.set_max_clients_per_user(ConnectionsPerUser(config_));
  reply.set_user_clients(static_cast<std::uint32_t>(std::count_if(
      clients_.begin(), clients_.end(), [&](const auto& entry) { return entry.second->credentials.uid == asking.credentials.uid; })));
  reply.set_rejected_connections(rejected_connections);
  reply.set_protocol_errors(protocol_errors);
  reply.set_retained_fds(descriptors_.kept());
  reply.set_max_retained_fds(descriptors_.max());
  if (host_cache_) DescribeHostCache(*reply.mutable_host_cache());
  std::size_t bytes = reply.ByteSizeLong();
  const auto full = [&] {
    if (bytes > kMaxListBytes) reply.set_lists_cut(true);
    return bytes > kMaxListBytes;
  };
  for (const auto& [name, domain] : domains_) {
    if (!sees_all && domain.get() != asking.domain) continue;
    if (full()) break;
    kvmwire::DomainStatus& out = *reply.add_domains();
    out.set_name(name);
    out.set_epoch(domain->segment().header().epoch);
    out.set_entries(domain->entries());
    out.set_max_entries(config_.max_entries);
    out.set_regions(domain->live_regions());
    out.set_max_regions(config_.max_regions);
    out.set_models(domain->models().live());
    out.set_max_models(config_.max_models);
    out.set_clients(domain->clients);
    out.set_segment_bytes(domain->segment().size());
    if (host_cache_) DescribeHostCache(*domain, *out.mutable_host_cache());
    out.set_orphans(domain->orphans());
    out.set_orphan_bytes(domain->orphan_bytes());
    out.set_fds(domain->fds());
    out.set_max_fds(domain->max_fds());
    const LeaseTable::Usage held = leases_.UsageOf(*domain);
    out.set_leases(held.leases);
    out.set_leased_blocks(held.blocks);
    out.set_leased_bytes(held.bytes);
    out.set_leased_orphans(domain->leased_orphans());
    bytes += out.ByteSizeLong() + 8;
  }
  for (const auto& [id, client] : clients_) {
    if (!message.status_query().clients()) break;
    if (client->domain == nullptr || (!sees_all && client->domain != asking.domain)) continue;
    if (full()) break;
    kvmwire::ClientStatus& out = *reply.add_client_list();
    out.set_client_id(id);
    out.set_name(client->name);
    out.set_pid(client->credentials.pid);
    out.set_uid(client->credentials.uid);
    out.set_domain(client->domain->name());
    out.set_role(client->role);
    out.set_connected_ms(client->connected_ms);
    const Account account = client->domain->AccountOf(id);
    out.set_regions(account.regions);
    out.set_entries(account.entries);
    out.set_fds(account.fds);
    const LeaseTable::Usage held = leases_.UsageOf(id);
    out.set_leases(held.leases);
    out.set_leased_bytes(held.bytes);
    out.set_queued_bytes(client->connection->queued_bytes());
    *out.mutable_stats() = client->stats;
    if (host_cache_) out.set_host_cache_bytes(host_cache_->BytesOf(id));
    bytes += out.ByteSizeLong() + 8;
  }
  for (const auto& [id, lease] : leases_.all()) {
    if (!message.status_query().leases()) break;
    if (!sees_all && lease->domain != asking.domain) continue;
    if (full()) break;
    DescribeLease(*lease, *reply.add_lease_list());
    bytes += reply.lease_list().rbegin()->ByteSizeLong() + 8;
  }
  for (const auto& [name, domain] : domains_) {
    if (!message.status_query().orphans() || (!sees_all && domain.get() != asking.domain)) continue;
    for (const Region* region : domain->Orphans()) {
      if (full()) break;
      DescribeOrphan(*domain, *region, *reply.add_orphan_list());
      bytes += reply.orphan_list().rbegin()->ByteSizeLong() + 8;
    }
  }
  asking.connection->Send(message_out);
}

}  // namespace kvm::daemon
