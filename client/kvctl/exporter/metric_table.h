// Every metric of kvctl exporter: name, type, labels and meaning. This table is the only list of
// them: the page is made from it, docs/METRICS.md has it as `kvctl exporter --list` prints it, and
// tests hold alert rules and dashboard to it.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

// Each takes a name, a type, label names separated by spaces, and its meaning. Counters end in
// _total, units are seconds and bytes.
// clang-format off
#define KVM_METRICS(COUNTER, GAUGE, HISTOGRAM) \
  GAUGE(kvmd_up, "", "1 if kvmd answered this scrape, else 0 and no other metric of kvmd.") \
  GAUGE(kvmd_status_duration_seconds, "", "How long kvmd took to answer this scrape.") \
  GAUGE(kvmd_status_lists_cut, "", \
    "1 if kvmd's answer was too large for one message, so that domains, pools or clients are missing.") \
  GAUGE(kvmd_build_info, "version", "1; the label has kvmd's version.") \
  GAUGE(kvmd_start_time_seconds, "", \
    "When this kvmd started, in Unix time. Each change is a restart, at which counters begin at 0.") \
  GAUGE(kvmd_resident_memory_bytes, "", \
    "Memory of kvmd's process that is resident, workers' generation tables included.") \
  GAUGE(kvmd_open_fds, "", "Descriptors that kvmd's process has open.") \
  GAUGE(kvmd_retained_fds, "", "Descriptors that kvmd keeps for regions and slabs.") \
  GAUGE(kvmd_retained_fds_limit, "", "How many of those it may keep.") \
  GAUGE(kvmd_connections, "", "Connections, those of kvctl and of this exporter included.") \
  GAUGE(kvmd_connections_limit, "", "The limit: --max-clients.") \
  COUNTER(kvmd_rejected_connections_total, "", \
    "Connections that kvmd refused: too many, or of a user that can't be named.") \
  COUNTER(kvmd_protocol_errors_total, "", "Clients that kvmd dropped because they broke the protocol.") \
  GAUGE(kvmd_clients, "domain", "Workers and observers that are connected.") \
  GAUGE(kvmd_client_queued_bytes, "domain", "Bytes that kvmd has for clients and that they have not read.") \
  COUNTER(kvmd_client_reconnects_total, "domain", "Connections of clients after their first.") \
  GAUGE(kvmd_unmapped_regions, "domain", \
    "Regions of peers that connected clients can't import from, summed over the clients.") \
  GAUGE(kvmd_registry_bytes, "domain", "Size of the registry in shared memory.") \
  GAUGE(kvmd_registry_blocks, "domain", "Blocks that can be found now; replicas count each.") \
  GAUGE(kvmd_registry_blocks_limit, "domain", "The limit: --max-entries.") \
  GAUGE(kvmd_registry_regions, "domain", \
    "Regions of living and of dead workers, and slabs of the host cache.") \
  GAUGE(kvmd_registry_regions_limit, "domain", "The limit: --max-regions.") \
  GAUGE(kvmd_registry_models, "domain", "Declared models.") \
  GAUGE(kvmd_registry_models_limit, "domain", "The limit: --max-models.") \
  GAUGE(kvmd_domain_fds, "domain", "Descriptors that kvmd keeps for the domain's regions and slabs.") \
  GAUGE(kvmd_domain_fds_limit, "domain", "The limit: --max-fds-per-domain.") \
  COUNTER(kvmd_indexed_blocks_total, "domain", "Published blocks that kvmd put into the index.") \
  COUNTER(kvmd_dropped_blocks_total, "domain reason", \
    "Blocks that left the index: replaced (published under another key, or left the host cache), " \
    "retracted or swept (rewritten), reaped (their region went), evicted (the index was full).") \
  COUNTER(kvmd_refused_blocks_total, "domain reason", \
    "Published blocks that did not get into the index: full, replicas (enough copies), stale " \
    "(rewritten before kvmd saw them).") \
  GAUGE(kvmd_pool_regions, "domain model fingerprint device path owner", \
    "Regions of one model in memory of one kind. path: host_memfd, cuda_ipc, cuda_vmm_fd. owner: " \
    "worker, orphan (its worker has died), host_cache.") \
  GAUGE(kvmd_pool_blocks, "domain model fingerprint device path owner", \
    "Blocks that those regions have room for.") \
  GAUGE(kvmd_pool_bytes, "domain model fingerprint device path owner", "Bytes of that room.") \
  GAUGE(kvmd_pool_indexed_blocks, "domain model fingerprint device path owner", \
    "Blocks of those regions that can be found.") \
  GAUGE(kvmd_orphan_regions, "domain", "Regions of dead workers that kvmd keeps.") \
  GAUGE(kvmd_orphan_leased_regions, "domain", "Of those: regions that leases keep.") \
  GAUGE(kvmd_orphan_bytes, "domain", "Memory of dead workers that is not free.") \
  GAUGE(kvmd_leases, "domain", "Leases.") \
  GAUGE(kvmd_leased_blocks, "domain", "Blocks of all leases; each counts once for each lease.") \
  GAUGE(kvmd_leased_bytes, "domain", "Bytes of those blocks.") \
  COUNTER(kvmd_lookups_total, "domain", "Lookups of clients.") \
  COUNTER(kvmd_lookup_keys_total, "domain result", \
    "Keys of those lookups. found: in front of the first that was not found; missed: all others.") \
  COUNTER(kvmd_misses_total, "domain reason", \
    "Lookups that ended before their last key. absent: the next block is not published; other_model: " \
    "nothing was found, while a model is served that nearly agrees; stale: the next block was rewritten; " \
    "unreachable: it can't be imported; too_short: less than a block; kvmd_away.") \
  HISTOGRAM(kvmd_lookup_duration_seconds, "domain", "How long lookups took; one of 8 is timed.") \
  HISTOGRAM(kvmd_import_duration_seconds, "domain", \
    "How long imports took, until their callers saw the end.") \
  COUNTER(kvmd_imports_total, "domain", "Imports that clients started.") \
  COUNTER(kvmd_imported_blocks_total, "domain source", \
    "Blocks that clients imported and validated, from a worker's memory or the host cache.") \
  COUNTER(kvmd_imported_bytes_total, "domain", "Bytes of those blocks.") \
  COUNTER(kvmd_device_imported_bytes_total, "domain from to", \
    "Of those bytes: by the devices of their source and of their destination. host: host memory.") \
  COUNTER(kvmd_import_failed_blocks_total, "domain", \
    "Blocks of imports that did not come, since their owner had reused them or one in front of them; " \
    "computed instead.") \
  COUNTER(kvmd_failed_imports_total, "domain reason", \
    "Imports of which a block did not come, by the reason of the first one. stale: its owner had reused it; " \
    "unmapped: its region was withdrawn, or can't be reached; deadline; error; corrupt: other bytes than were published.") \
  COUNTER(kvmd_verified_blocks_total, "domain", "Blocks of imports that were compared with their checksums.") \
  COUNTER(kvmd_corrupt_blocks_total, "domain", "Of those: other bytes than were published. Not used.") \
  GAUGE(kvmd_marked_keys, "domain", "Keys that clients have marked as being computed.") \
  COUNTER(kvmd_computing_waits_total, "domain result", \
    "Waits for blocks that another client was computing. found: they brought blocks; in_vain: they did not.") \
  COUNTER(kvmd_published_blocks_total, "domain", "Blocks that clients made readable.") \
  COUNTER(kvmd_deferred_publishes_total, "domain", "Of those: sent later, because kvmd was away or behind.") \
  COUNTER(kvmd_offloaded_blocks_total, "domain", "Blocks that clients copied to the host cache.") \
  COUNTER(kvmd_dropped_offloads_total, "domain", \
    "Blocks that clients did not copy: published too fast, or reused first.") \
  COUNTER(kvmd_model_lookups_total, "domain model fingerprint", \
    "Of the lookups: those of clients that have declared this model and no other. So are all of kvmd_model_. " \
    "They begin at 0 when a model is declared anew.") \
  COUNTER(kvmd_model_lookup_keys_total, "domain model fingerprint result", \
    "As kvmd_lookup_keys_total, of this model's clients.") \
  COUNTER(kvmd_model_misses_total, "domain model fingerprint reason", "As kvmd_misses_total, of this model's clients.") \
  COUNTER(kvmd_model_imported_blocks_total, "domain model fingerprint source", \
    "As kvmd_imported_blocks_total, of this model's clients.") \
  COUNTER(kvmd_model_imported_bytes_total, "domain model fingerprint", "Bytes of those blocks.") \
  COUNTER(kvmd_model_failed_imports_total, "domain model fingerprint reason", \
    "As kvmd_failed_imports_total, of this model's clients.") \
  GAUGE(kvmd_host_cache_limit_bytes, "", \
    "What the host cache may have: --host-cache. Absent without one, as are all that follow.") \
  GAUGE(kvmd_host_cache_allocated_bytes, "", "What it has, or is allocating, over all domains.") \
  GAUGE(kvmd_host_cache_huge_page_bytes, "pages", "Of those: on huge pages, reserved or transparent.") \
  GAUGE(kvmd_host_cache_info, "policy admission", "1; the labels have its eviction and admission policies.") \
  GAUGE(kvmd_host_cache_bytes, "domain", "Bytes of the domain's slabs.") \
  GAUGE(kvmd_host_cache_used_bytes, "domain", "Bytes of the blocks in them.") \
  GAUGE(kvmd_host_cache_slabs, "domain", "Slabs.") \
  GAUGE(kvmd_host_cache_blocks, "domain", "Blocks in them.") \
  COUNTER(kvmd_host_cache_hit_blocks_total, "domain", "Blocks that workers imported from it.") \
  COUNTER(kvmd_host_cache_stored_blocks_total, "domain", "Blocks that workers stored in it.") \
  COUNTER(kvmd_host_cache_evicted_blocks_total, "domain", \
    "Blocks that left it for others, or with their slab.") \
  COUNTER(kvmd_host_cache_refused_blocks_total, "domain", "Blocks that were offered and found no room.") \
  COUNTER(kvmd_host_cache_expired_blocks_total, "domain", \
    "Blocks for which room was granted and that were not stored in time.") \
  GAUGE(kvmd_mesh_up, "socket", \
    "1 if the kvmd-mesh of this socket answered this scrape, else 0 and no other metric of it.") \
  GAUGE(kvmd_mesh_blocks, "domain node", "Blocks that kvmd-mesh has for other nodes.") \
  GAUGE(kvmd_mesh_peers, "domain node state", "Other nodes: answers, silent, shunned.") \
  COUNTER(kvmd_mesh_served_blocks_total, "domain node", "Blocks that it sent to other nodes.") \
  COUNTER(kvmd_mesh_served_bytes_total, "domain node", "Bytes of those blocks.") \
  COUNTER(kvmd_mesh_joins_total, "domain node", "Prefixes that workers asked it for.") \
  COUNTER(kvmd_mesh_joined_blocks_total, "domain node", "Blocks that this brought here.") \
  COUNTER(kvmd_mesh_failed_work_total, "domain node", \
    "Work on threads that ended for lack of memory; its request was a miss.") \
  COUNTER(kvmd_mesh_fetched_blocks_total, "domain node peer", "Blocks that came from another node.") \
  COUNTER(kvmd_mesh_fetched_bytes_total, "domain node peer", "Bytes of those blocks.") \
  COUNTER(kvmd_mesh_peer_failures_total, "domain node peer", "Requests to another node that failed.") \
  GAUGE(kvmd_mesh_disk_on, "domain node", \
    "1 if the disk cache reads and writes, else 0. Absent without one, as are all of kvmd_mesh_disk_.") \
  GAUGE(kvmd_mesh_disk_blocks, "domain node", "Blocks that can be read from it.") \
  GAUGE(kvmd_mesh_disk_file_bytes, "domain node", "Bytes of its files.") \
  GAUGE(kvmd_mesh_disk_limit_bytes, "domain node", "The limit: --disk-bytes.") \
  COUNTER(kvmd_mesh_disk_read_blocks_total, "domain node", "Blocks that joins read from it.") \
  COUNTER(kvmd_mesh_disk_written_blocks_total, "domain node", "Blocks that were written to it.") \
  COUNTER(kvmd_mesh_disk_evicted_blocks_total, "domain node", "Blocks that left it for others.") \
  COUNTER(kvmd_mesh_disk_bad_records_total, "domain node", "Records that were damaged, and dropped.") \
  GAUGE(kvmd_mesh_events_blocks, "domain node", \
    "Blocks that routers know of. Absent without --events, as are all of kvmd_mesh_events_.") \
  GAUGE(kvmd_mesh_events_untold_blocks, "domain node reason", \
    "Blocks that this node has and routers are not told of. undescribed: no worker has told their tokens; " \
    "unreachable: a block before is not told; other_variant: of another variant of a model.") \
  COUNTER(kvmd_mesh_events_batches_total, "domain node", "Batches of events, empty ones included.") \
  COUNTER(kvmd_mesh_events_told_blocks_total, "domain node change", "Blocks in them: stored, removed.") \
  COUNTER(kvmd_mesh_events_replays_total, "domain node kind", \
    "Answers to subscribers that missed something: batches that were kept, or a snapshot.") \
  COUNTER(kvmd_mesh_events_forgotten_blocks_total, "domain node", \
    "Blocks whose tokens made room for those of others: --events-blocks.") \
  COUNTER(kvmd_mesh_events_refused_blocks_total, "domain node", "Blocks whose description was not taken.")
// clang-format on

namespace kvm::ctl {

enum class Metric {
#define KVM_METRIC(name, labels, help) name,
  KVM_METRICS(KVM_METRIC, KVM_METRIC, KVM_METRIC)
#undef KVM_METRIC
};

enum class MetricKind { kCounter, kGauge, kHistogram };

constexpr std::string_view KindName(MetricKind kind) noexcept {
  switch (kind) {
    case MetricKind::kCounter: return "counter";
    case MetricKind::kGauge: return "gauge";
    case MetricKind::kHistogram: return "histogram";
  }
  return "untyped";
}

struct MetricDescription {
  std::string_view name;
  MetricKind kind;
  std::string_view labels;  // separated by spaces
  std::string_view help;
};

inline constexpr auto kMetrics = std::to_array<MetricDescription>({
#define KVM_COUNTER(name, labels, help) {#name, MetricKind::kCounter, labels, help},
#define KVM_GAUGE(name, labels, help) {#name, MetricKind::kGauge, labels, help},
#define KVM_HISTOGRAM(name, labels, help) {#name, MetricKind::kHistogram, labels, help},
    KVM_METRICS(KVM_COUNTER, KVM_GAUGE, KVM_HISTOGRAM)
#undef KVM_COUNTER
#undef KVM_GAUGE
#undef KVM_HISTOGRAM
});

constexpr const MetricDescription& Describe(Metric metric) { return kMetrics[static_cast<std::size_t>(metric)]; }

}  // namespace kvm::ctl
