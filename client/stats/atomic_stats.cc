#include "client/stats/atomic_stats.h"

namespace kvm {

ClientStats Load(const AtomicStats& stats) noexcept {
  const auto load = [](const std::atomic<std::uint64_t>& counter) { return counter.load(std::memory_order_relaxed); };
  ClientStats out;
  out.finds = load(stats.finds);
  out.keys_looked_up = load(stats.keys_looked_up);
  out.keys_matched = load(stats.keys_matched);
  out.imports = load(stats.imports);
  out.blocks_imported = load(stats.blocks_imported);
  out.blocks_failed = load(stats.blocks_failed);
  out.bytes_imported = load(stats.bytes_imported);
  out.blocks_published = load(stats.blocks_published);
  out.publishes_deferred = load(stats.publishes_deferred);
  out.publishes_refused = load(stats.publishes_refused);
  out.blocks_offloaded = load(stats.blocks_offloaded);
  out.offloads_dropped = load(stats.offloads_dropped);
  out.offloads_refused = load(stats.offloads_refused);
  out.blocks_from_host_cache = load(stats.blocks_from_host_cache);
  const std::uint64_t connections = load(stats.connections);
  out.reconnects = connections > 0 ? connections - 1 : 0;
  return out;
}

kvmwire::StatsReport ReportOf(const ClientStats& stats) {
  kvmwire::StatsReport report;
  report.set_finds(stats.finds);
  report.set_keys_looked_up(stats.keys_looked_up);
  report.set_keys_matched(stats.keys_matched);
  report.set_imports(stats.imports);
  report.set_blocks_imported(stats.blocks_imported);
  report.set_blocks_failed(stats.blocks_failed);
  report.set_bytes_imported(stats.bytes_imported);
  report.set_blocks_published(stats.blocks_published);
  report.set_publishes_deferred(stats.publishes_deferred);
  report.set_reconnects(stats.reconnects);
  report.set_blocks_offloaded(stats.blocks_offloaded);
  report.set_offloads_dropped(stats.offloads_dropped);
  report.set_blocks_from_host_cache(stats.blocks_from_host_cache);
  return report;
}

}  // namespace kvm
