#include "client/kvctl/exporter/status_metrics.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "client/kvctl/cli/miss_reasons.h"
#include "client/kvctl/cli/registry_tables.h"

namespace kvm::ctl {
namespace {

// Members of a scoped enum, by their names alone.
using enum Metric;

double Value(std::uint64_t count) { return static_cast<double>(count); }

std::string DeviceLabel(const std::string& uuid) { return DeviceName(DeviceOf(uuid)); }

std::string FingerprintLabel(const std::string& bytes) {
  Fingerprint fingerprint;
  std::memcpy(fingerprint.bytes.data(), bytes.data(), std::min(bytes.size(), fingerprint.bytes.size()));
  return ShortFingerprint(fingerprint);
}

void AddDaemon(MetricPage& page, const kvmwire::StatusReply& status) {
  page.Add(kvmd_status_lists_cut, status.lists_cut() ? 1 : 0);
  page.Add(kvmd_build_info, 1, {status.server_version()});
  page.Add(kvmd_start_time_seconds, Value(status.started_ms()) / 1000);
  page.Add(kvmd_resident_memory_bytes, Value(status.resident_bytes()));
  page.Add(kvmd_open_fds, status.open_fds());
  page.Add(kvmd_retained_fds, Value(status.retained_fds()));
  page.Add(kvmd_retained_fds_limit, Value(status.max_retained_fds()));
  page.Add(kvmd_connections, status.clients());
  page.Add(kvmd_connections_limit, status.max_clients());
  page.Add(kvmd_rejected_connections_total, Value(status.rejected_connections()));
  page.Add(kvmd_protocol_errors_total, Value(status.protocol_errors()));
  if (!status.has_host_cache()) return;
  const kvmwire::HostCacheStatus& cache = status.host_cache();
  page.Add(kvmd_host_cache_limit_bytes, Value(cache.max_bytes()));
  page.Add(kvmd_host_cache_allocated_bytes, Value(cache.bytes()));
  page.Add(kvmd_host_cache_huge_page_bytes, Value(cache.huge_bytes()), {"reserved"});
  page.Add(kvmd_host_cache_huge_page_bytes, Value(cache.transparent_bytes()), {"transparent"});
  page.Add(kvmd_host_cache_info, 1, {cache.policy(), cache.admission()});
}

void AddTables(MetricPage& page, const kvmwire::DomainStatus& domain) {
  const std::string& name = domain.name();
  page.Add(kvmd_clients, domain.clients(), {name});
  page.Add(kvmd_registry_bytes, Value(domain.segment_bytes()), {name});
  page.Add(kvmd_registry_blocks, Value(domain.entries()), {name});
  page.Add(kvmd_registry_blocks_limit, Value(domain.max_entries()), {name});
  page.Add(kvmd_registry_regions, domain.regions(), {name});
  page.Add(kvmd_registry_regions_limit, domain.max_regions(), {name});
  page.Add(kvmd_registry_models, domain.models(), {name});
  page.Add(kvmd_registry_models_limit, domain.max_models(), {name});
  page.Add(kvmd_domain_fds, Value(domain.fds()), {name});
  page.Add(kvmd_domain_fds_limit, Value(domain.max_fds()), {name});
  page.Add(kvmd_orphan_regions, domain.orphans(), {name});
  page.Add(kvmd_orphan_leased_regions, domain.leased_orphans(), {name});
  page.Add(kvmd_orphan_bytes, Value(domain.orphan_bytes()), {name});
  page.Add(kvmd_leases, domain.leases(), {name});
  page.Add(kvmd_leased_blocks, Value(domain.leased_blocks()), {name});
  page.Add(kvmd_leased_bytes, Value(domain.leased_bytes()), {name});
  const kvmwire::RegistryCounters& counters = domain.counters();
  page.Add(kvmd_indexed_blocks_total, Value(counters.published()), {name});
  page.Add(kvmd_dropped_blocks_total, Value(counters.replaced()), {name, "replaced"});
  page.Add(kvmd_dropped_blocks_total, Value(counters.retracted()), {name, "retracted"});
  page.Add(kvmd_dropped_blocks_total, Value(counters.swept()), {name, "swept"});
  page.Add(kvmd_dropped_blocks_total, Value(counters.reaped()), {name, "reaped"});
  page.Add(kvmd_dropped_blocks_total, Value(counters.evicted()), {name, "evicted"});
  page.Add(kvmd_refused_blocks_total, Value(counters.refused_full()), {name, "full"});
  page.Add(kvmd_refused_blocks_total, Value(counters.refused_replicas()), {name, "replicas"});
  page.Add(kvmd_refused_blocks_total, Value(counters.refused_stale()), {name, "stale"});
}

void AddMemory(MetricPage& page, const std::string& domain, const kvmwire::MemoryGroup& group) {
  const std::string device = DeviceLabel(group.device_uuid()), fingerprint = FingerprintLabel(group.fingerprint());
  const std::string path(HandleKindName(static_cast<layout::HandleKind>(group.handle_kind())));
  const char* owner = group.host_cache() ? "host_cache" : group.orphan() ? "orphan" : "worker";
  const auto add = [&](Metric metric, std::uint64_t value) {
    page.Add(metric, Value(value), {domain, group.model_id(), fingerprint, device, path, owner});
  };
  add(kvmd_pool_regions, group.regions());
  add(kvmd_pool_blocks, group.blocks());
  add(kvmd_pool_bytes, group.bytes());
  add(kvmd_pool_indexed_blocks, group.entries());
}

// Of a whole without a part. What clients say may contradict itself.
double Rest(std::uint64_t whole, std::uint64_t part) { return Value(whole > part ? whole - part : 0); }

struct FailedImports {
  std::uint64_t (kvmwire::StatsReport::*count)() const;
  const char* reason;
};
constexpr std::array<FailedImports, 5> kFailedImports{{
    {&kvmwire::StatsReport::imports_failed_stale, "stale"},
    {&kvmwire::StatsReport::imports_failed_unmapped, "unmapped"},
    {&kvmwire::StatsReport::imports_failed_deadline, "deadline"},
    {&kvmwire::StatsReport::imports_failed_error, "error"},
    {&kvmwire::StatsReport::imports_failed_corrupt, "corrupt"},
}};

void AddModel(MetricPage& page, const std::string& domain, const kvmwire::ModelTotals& totals) {
  const kvmwire::StatsReport& counters = totals.counters();
  const std::string fingerprint = FingerprintLabel(totals.fingerprint());
  const auto add = [&](Metric metric, double value, std::string_view last = {}) {
    std::vector<std::string> labels{domain, totals.model_id(), fingerprint};
    if (!last.empty()) labels.emplace_back(last);
    page.Add(metric, value, labels);
  };
  add(kvmd_model_lookups_total, Value(counters.finds()));
  add(kvmd_model_lookup_keys_total, Value(counters.keys_matched()), "found");
  add(kvmd_model_lookup_keys_total, Rest(counters.keys_looked_up(), counters.keys_matched()), "missed");
  for (const MissReason& miss : kMissReasons) add(kvmd_model_misses_total, Value((counters.*miss.count)()), miss.name);
  add(kvmd_model_imported_blocks_total, Rest(counters.blocks_imported(), counters.blocks_from_host_cache()), "worker");
  add(kvmd_model_imported_blocks_total, Value(counters.blocks_from_host_cache()), "host_cache");
  add(kvmd_model_imported_bytes_total, Value(counters.bytes_imported()));
  for (const FailedImports& failed : kFailedImports) add(kvmd_model_failed_imports_total, Value((counters.*failed.count)()), failed.reason);
}

void AddClients(MetricPage& page, const kvmwire::StatusReply& status, const kvmwire::DomainStatus& domain) {
  const std::string& name = domain.name();
  const kvmwire::StatsReport& totals = domain.client_totals();
  page.Add(kvmd_lookups_total, Value(totals.finds()), {name});
  page.Add(kvmd_lookup_keys_total, Value(totals.keys_matched()), {name, "found"});
  page.Add(kvmd_lookup_keys_total, Rest(totals.keys_looked_up(), totals.keys_matched()), {name, "missed"});
  for (const MissReason& miss : kMissReasons) page.Add(kvmd_misses_total, Value((totals.*miss.count)()), {name, std::string(miss.name)});
  const auto times = [&](Metric metric, const kvmwire::Durations& all) {
    page.AddTimes(metric, {all.counts().data(), static_cast<std::size_t>(all.counts_size())}, Value(all.sum_ns()) / 1e9, {name});
  };
  times(kvmd_lookup_duration_seconds, totals.lookup_times());
  times(kvmd_import_duration_seconds, totals.import_times());
  page.Add(kvmd_imports_total, Value(totals.imports()), {name});
  page.Add(kvmd_imported_blocks_total, Rest(totals.blocks_imported(), totals.blocks_from_host_cache()), {name, "worker"});
  page.Add(kvmd_imported_blocks_total, Value(totals.blocks_from_host_cache()), {name, "host_cache"});
  page.Add(kvmd_imported_bytes_total, Value(totals.bytes_imported()), {name});
  for (const kvmwire::DeviceTraffic& pair : totals.traffic())
    page.Add(kvmd_device_imported_bytes_total, Value(pair.bytes()), {name, DeviceLabel(pair.from_device()), DeviceLabel(pair.to_device())});
  page.Add(kvmd_import_failed_blocks_total, Value(totals.blocks_failed()), {name});
  for (const FailedImports& failed : kFailedImports)
    page.Add(kvmd_failed_imports_total, Value((totals.*failed.count)()), {name, failed.reason});
  page.Add(kvmd_verified_blocks_total, Value(totals.blocks_verified()), {name});
  page.Add(kvmd_corrupt_blocks_total, Value(totals.blocks_corrupt()), {name});
  page.Add(kvmd_marked_keys, domain.marked_keys(), {name});
  page.Add(kvmd_computing_waits_total, Rest(totals.computing_waits(), totals.computing_waits_in_vain()), {name, "found"});
  page.Add(kvmd_computing_waits_total, Value(totals.computing_waits_in_vain()), {name, "in_vain"});
  page.Add(kvmd_published_blocks_total, Value(totals.blocks_published()), {name});
  page.Add(kvmd_deferred_publishes_total, Value(totals.publishes_deferred()), {name});
  page.Add(kvmd_client_reconnects_total, Value(totals.reconnects()), {name});
  page.Add(kvmd_offloaded_blocks_total, Value(totals.blocks_offloaded()), {name});
  page.Add(kvmd_dropped_offloads_total, Value(totals.offloads_dropped()), {name});
  std::uint64_t unmapped = 0, queued_bytes = 0;
  for (const kvmwire::ClientStatus& client : status.client_list()) {
    if (client.domain() != name) continue;
    unmapped += client.stats().unmapped_regions();
    queued_bytes += client.queued_bytes();
  }
  page.Add(kvmd_unmapped_regions, Value(unmapped), {name});
  page.Add(kvmd_client_queued_bytes, Value(queued_bytes), {name});
}

void AddHostCache(MetricPage& page, const std::string& domain, const kvmwire::HostCacheDomain& cache) {
  page.Add(kvmd_host_cache_bytes, Value(cache.bytes()), {domain});
  page.Add(kvmd_host_cache_used_bytes, Value(cache.used_bytes()), {domain});
  page.Add(kvmd_host_cache_slabs, cache.slabs(), {domain});
  page.Add(kvmd_host_cache_blocks, Value(cache.blocks()), {domain});
  page.Add(kvmd_host_cache_hit_blocks_total, Value(cache.hits()), {domain});
  page.Add(kvmd_host_cache_stored_blocks_total, Value(cache.stored()), {domain});
  page.Add(kvmd_host_cache_evicted_blocks_total, Value(cache.evicted()), {domain});
  page.Add(kvmd_host_cache_refused_blocks_total, Value(cache.refused()), {domain});
  page.Add(kvmd_host_cache_expired_blocks_total, Value(cache.expired()), {domain});
}

}  // namespace

MetricPage MetricsOf(const kvmwire::StatusReply& status, std::chrono::nanoseconds took) {
  MetricPage page;
  page.Add(kvmd_up, 1);
  page.Add(kvmd_status_duration_seconds, std::chrono::duration<double>(took).count());
  AddDaemon(page, status);
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    AddTables(page, domain);
    AddClients(page, status, domain);
    for (const kvmwire::ModelTotals& model : domain.model_totals()) AddModel(page, domain.name(), model);
    for (const kvmwire::MemoryGroup& group : domain.memory()) AddMemory(page, domain.name(), group);
    if (domain.has_host_cache()) AddHostCache(page, domain.name(), domain.host_cache());
  }
  return page;
}

MetricPage MetricsWithoutKvmd() {
  MetricPage page;
  page.Add(kvmd_up, 0);
  return page;
}

}  // namespace kvm::ctl
