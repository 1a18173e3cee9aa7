// kvctl status and kvctl clients: the state of kvmd and of its clients.
#include <algorithm>
#include <chrono>
#include <iostream>
#include <utility>

#include "client/kvctl/cli/clock.h"
#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/registry_tables.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {
namespace {

std::uint64_t AgeSeconds(std::uint64_t started_ms) {
  const std::uint64_t now_ms = UnixTimeMs();
  return now_ms > started_ms ? (now_ms - started_ms) / 1000 : 0;
}

boost::json::object CountersJson(const layout::Counters& counters) {
  const auto value = [](const std::atomic<std::uint64_t>& counter) { return counter.load(std::memory_order_relaxed); };
  return {{"published", value(counters.published)},
          {"replaced", value(counters.replaced)},
          {"retracted", value(counters.retracted)},
          {"swept", value(counters.swept)},
          {"reaped", value(counters.reaped)},
          {"evicted", value(counters.evicted)},
          {"refused_full", value(counters.refused_full)},
          {"refused_replicas", value(counters.refused_replicas)},
          {"refused_stale", value(counters.refused_stale)}};
}

boost::json::object HostCacheJson(const kvmwire::HostCacheDomain& cache) {
  return {{"bytes", cache.bytes()},    {"used_bytes", cache.used_bytes()}, {"slabs", cache.slabs()},     {"blocks", cache.blocks()},
          {"hits", cache.hits()},      {"stored", cache.stored()},         {"evicted", cache.evicted()}, {"refused", cache.refused()},
          {"expired", cache.expired()}};
}

// null without a host cache.
boost::json::value HostCacheJson(const kvmwire::StatusReply& status) {
  if (!status.has_host_cache()) return nullptr;
  const kvmwire::HostCacheStatus& cache = status.host_cache();
  return {{"max_bytes", cache.max_bytes()},
          {"bytes", cache.bytes()},
          {"slab_bytes", cache.slab_bytes()},
          {"policy", cache.policy()},
          {"admission", cache.admission()},
          {"huge_bytes", cache.huge_bytes()},
          {"transparent_bytes", cache.transparent_bytes()}};
}

// The number of blocks that the connected clients of a domain could not copy to the host cache in
// time.
std::uint64_t OffloadsDropped(const kvmwire::StatusReply& status, const std::string& domain) {
  std::uint64_t dropped = 0;
  for (const auto& client : status.client_list()) {
    if (client.domain() == domain) dropped += client.stats().offloads_dropped();
  }
  return dropped;
}

boost::json::object DomainJson(const kvmwire::StatusReply& status, const kvmwire::DomainStatus& domain) {
  boost::json::object object{{"name", Printable(domain.name())},
                             {"epoch", domain.epoch()},
                             {"entries", domain.entries()},
                             {"max_entries", domain.max_entries()},
                             {"regions", domain.regions()},
                             {"max_regions", domain.max_regions()},
                             {"models", domain.models()},
                             {"max_models", domain.max_models()},
                             {"clients", domain.clients()},
                             {"segment_bytes", domain.segment_bytes()},
                             {"orphans", domain.orphans()},
                             {"orphan_bytes", domain.orphan_bytes()},
                             {"fds", domain.fds()},
                             {"max_fds", domain.max_fds()},
                             {"leases", domain.leases()},
                             {"leased_blocks", domain.leased_blocks()},
                             {"leased_bytes", domain.leased_bytes()},
                             {"leased_orphans", domain.leased_orphans()}};
  if (domain.has_host_cache()) {
    boost::json::object cache = HostCacheJson(domain.host_cache());
    cache["offloads_dropped"] = OffloadsDropped(status, domain.name());
    object["host_cache"] = std::move(cache);
  }
  return object;
}

boost::json::array RegionGroupsJson(const Observer& observer) {
  boost::json::array array;
  for (const RegionGroup& group : GroupByMemory(ReadRegions(observer.registry()))) {
    array.push_back(boost::json::object{{"handle_kind", HandleKindName(group.kind)},
                                        {"device", DeviceName(group.device)},
                                        {"regions", group.regions},
                                        {"size_bytes", group.size_bytes},
                                        {"entries", group.entries}});
  }
  return array;
}

boost::json::object StatusJson(const Observer& observer, const kvmwire::StatusReply& status, bool healthy) {
  boost::json::array domains;
  for (const auto& domain : status.domains()) domains.push_back(DomainJson(status, domain));
  return {{"healthy", healthy},
          {"server_version", status.server_version()},
          {"pid", status.pid()},
          {"started_ms", status.started_ms()},
          {"uptime_s", AgeSeconds(status.started_ms())},
          {"resident_bytes", status.resident_bytes()},
          {"open_fds", status.open_fds()},
          {"retained_fds", status.retained_fds()},
          {"max_retained_fds", status.max_retained_fds()},
          {"clients", status.clients()},
          {"max_clients", status.max_clients()},
          {"user_clients", status.user_clients()},
          {"max_clients_per_user", status.max_clients_per_user()},
          {"rejected_connections", status.rejected_connections()},
          {"protocol_errors", status.protocol_errors()},
          {"lists_cut", status.lists_cut()},
          {"heartbeat_age_ms", observer.HeartbeatAge().count()},
          {"domain", Printable(observer.hello().domain())},
          {"registry_state", SegmentStateName(observer.registry().state())},
          {"memory", RegionGroupsJson(observer)},
          {"counters", CountersJson(observer.registry().header().counters)},
          {"host_cache", HostCacheJson(status)},
          {"domains", std::move(domains)}};
}

void PrintStatus(const Observer& observer, const kvmwire::StatusReply& status) {
  FieldList fields;
  fields.Add("kvmd",
             status.server_version() + ", pid " + std::to_string(status.pid()) + ", up " + HumanSeconds(AgeSeconds(status.started_ms())));
  fields.Add("heartbeat", std::to_string(observer.HeartbeatAge().count()) + " ms ago, registry " +
                              std::string(SegmentStateName(observer.registry().state())));
  fields.Add("memory", HumanBytes(status.resident_bytes()) + " resident, " + std::to_string(status.open_fds()) + " descriptors, " +
                           std::to_string(status.retained_fds()) + " of " + std::to_string(status.max_retained_fds()) + " for regions");
  fields.Add("clients", std::to_string(status.clients()) + " of " + std::to_string(status.max_clients()) + "; this user's " +
                            std::to_string(status.user_clients()) + " of " + std::to_string(status.max_clients_per_user()) + "; " +
                            HumanCount(status.rejected_connections()) + " rejected, " + HumanCount(status.protocol_errors()) +
                            " protocol errors");
  const layout::Counters& counters = observer.registry().header().counters;
  const auto value = [](const std::atomic<std::uint64_t>& counter) { return HumanCount(counter.load(std::memory_order_relaxed)); };
  fields.Add("own domain", Printable(observer.hello().domain()));
  fields.Add("  published", value(counters.published) + " (refused: " + value(counters.refused_full) + " full, " +
                                value(counters.refused_replicas) + " replicas, " + value(counters.refused_stale) + " stale)");
  fields.Add("  dropped", value(counters.replaced) + " replaced, " + value(counters.retracted) + " retracted, " + value(counters.swept) +
                              " swept, " + value(counters.reaped) + " reaped, " + value(counters.evicted) + " evicted");
  for (const RegionGroup& group : GroupByMemory(ReadRegions(observer.registry()))) {
    fields.Add("  memory", DeviceName(group.device) + ": " + HumanCount(group.regions) + " " + std::string(HandleKindName(group.kind)) +
                               (group.regions == 1 ? " region" : " regions") + " of " + HumanBytes(group.size_bytes) + ", " +
                               HumanCount(group.entries) + " blocks published");
  }
  if (status.has_host_cache()) {
    const kvmwire::HostCacheStatus& cache = status.host_cache();
    std::string pages;
    if (cache.huge_bytes() > 0) pages += ", " + HumanBytes(cache.huge_bytes()) + " on reserved huge pages";
    if (cache.transparent_bytes() > 0) pages += ", " + HumanBytes(cache.transparent_bytes()) + " on transparent huge pages";
    fields.Add("host cache", HumanBytes(cache.bytes()) + " of " + HumanBytes(cache.max_bytes()) + " in slabs of " +
                                 HumanBytes(cache.slab_bytes()) + pages + "; admission " + cache.admission() + ", policy " +
                                 cache.policy());
  }
  for (const auto& domain : status.domains()) {
    const std::uint64_t dropped = OffloadsDropped(status, domain.name());
    if (!domain.has_host_cache() || (domain.host_cache().bytes() == 0 && dropped == 0)) continue;
    const kvmwire::HostCacheDomain& cache = domain.host_cache();
    fields.Add("  " + Printable(domain.name()),
               HumanCount(cache.blocks()) + " blocks in " + HumanCount(cache.slabs()) + (cache.slabs() == 1 ? " slab, " : " slabs, ") +
                   HumanBytes(cache.used_bytes()) + " of " + HumanBytes(cache.bytes()) + "; " + HumanCount(cache.hits()) + " hits, " +
                   HumanCount(cache.stored()) + " stored, " + HumanCount(cache.evicted()) + " evicted, " + HumanCount(cache.refused()) +
                   " refused, " + HumanCount(cache.expired()) + " expired, " + HumanCount(dropped) + " dropped by clients");
  }
  fields.Print(std::cout);
  std::cout << '\n';
  Table table({"domain", ">blocks", ">of", ">full", ">regions", ">models", ">clients", ">descriptors", ">segment", ">orphans",
               ">orphan memory", ">leases", ">leased"});
  for (const auto& domain : status.domains()) {
    table.Add({Printable(domain.name()), HumanCount(domain.entries()), HumanCount(domain.max_entries()),
               HumanPercent(static_cast<double>(domain.entries()), static_cast<double>(domain.max_entries())),
               std::to_string(domain.regions()) + "/" + std::to_string(domain.max_regions()),
               std::to_string(domain.models()) + "/" + std::to_string(domain.max_models()), std::to_string(domain.clients()),
               std::to_string(domain.fds()) + "/" + std::to_string(domain.max_fds()), HumanBytes(domain.segment_bytes()),
               std::to_string(domain.orphans()), HumanBytes(domain.orphan_bytes()), std::to_string(domain.leases()),
               HumanBytes(domain.leased_bytes())});
  }
  table.Print(std::cout);
}

boost::json::object ClientJson(const kvmwire::ClientStatus& client) {
  const kvmwire::StatsReport& stats = client.stats();
  boost::json::object json{{"client_id", client.client_id()},
                           {"name", Printable(client.name())},
                           {"role", client.role() == kvmwire::OBSERVER ? "observer" : "worker"},
                           {"pid", client.pid()},
                           {"uid", client.uid()},
                           {"domain", Printable(client.domain())},
                           {"connected_ms", client.connected_ms()},
                           {"regions", client.regions()},
                           {"entries", client.entries()},
                           {"queued_bytes", client.queued_bytes()},
                           {"fds", client.fds()},
                           {"leases", client.leases()},
                           {"leased_bytes", client.leased_bytes()},
                           {"marked_keys", client.marked_keys()},
                           {"process_watched", !client.process_not_watched()}};
  for (auto& [name, value] : ToJson(stats)) json[name] = std::move(value);
  json["host_cache_bytes"] = client.host_cache_bytes();
  json["unmapped_regions"] = stats.unmapped_regions();
  json["unmapped_reason"] = Printable(stats.unmapped_reason());
  return json;
}

}  // namespace

int RunStatus(const CommonOptions& common) {
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  Result<kvmwire::StatusReply> status = observer->QueryStatus(false);
  if (!status) return Fail(status.error());
  if (status->has_host_cache()) {
    // Only clients know how many blocks they dropped. If they can't be listed, the rest is shown
    // without that number.
    Result<kvmwire::StatusReply> with_clients = observer->QueryStatus(true);
    if (with_clients) status = std::move(with_clients);
  }
  const bool stale = observer->HeartbeatAge() > kHeartbeatLimit;
  const bool live = observer->registry().state() == layout::SegmentState::kLive;
  if (common.json) {
    PrintJson(StatusJson(*observer, *status, !stale && live));
  } else {
    PrintStatus(*observer, *status);
  }
  PrintCutListNote(*status);
  if (stale) {
    std::cerr << "kvctl: kvmd's last heartbeat is " << observer->HeartbeatAge().count() << " ms old\n";
    return kUnhealthy;
  }
  if (!live) {
    std::cerr << "kvctl: the registry is " << SegmentStateName(observer->registry().state()) << ", not live\n";
    return kUnhealthy;
  }
  return kHealthy;
}

int RunClients(const CommonOptions& common) {
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  Result<kvmwire::StatusReply> status = observer->QueryStatus(true);
  if (!status) return Fail(status.error());
  PrintCutListNote(*status);
  if (common.json) {
    boost::json::array clients;
    for (const auto& client : status->client_list()) clients.push_back(ClientJson(client));
    PrintJson({{"clients", std::move(clients)}, {"lists_cut", status->lists_cut()}});
    return kHealthy;
  }
  Table table({">id", "name", ">pid", ">uid", "domain", "role", ">connected", ">regions", ">blocks", ">lookups", ">keys found", ">imported",
               ">failed", ">bytes in", ">published", ">stored", ">dropped", ">from cache", ">unmapped"});
  for (const auto& client : status->client_list()) {
    const kvmwire::StatsReport& stats = client.stats();
    table.Add({std::to_string(client.client_id()), Printable(client.name()), std::to_string(client.pid()), std::to_string(client.uid()),
               Printable(client.domain()), client.role() == kvmwire::OBSERVER ? "observer" : "worker",
               HumanSeconds(AgeSeconds(client.connected_ms())), std::to_string(client.regions()), HumanCount(client.entries()),
               HumanCount(stats.finds()),
               HumanPercent(static_cast<double>(stats.keys_matched()), static_cast<double>(stats.keys_looked_up())),
               HumanCount(stats.blocks_imported()), HumanCount(stats.blocks_failed()), HumanBytes(stats.bytes_imported()),
               HumanCount(stats.blocks_published()), HumanCount(stats.blocks_offloaded()), HumanCount(stats.offloads_dropped()),
               HumanCount(stats.blocks_from_host_cache()), HumanCount(stats.unmapped_regions())});
  }
  table.Print(std::cout);
  return kHealthy;
}

}  // namespace kvm::ctl
