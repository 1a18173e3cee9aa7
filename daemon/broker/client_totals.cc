#include "daemon/broker/client_totals.h"

#include <cstdint>
#include <limits>

namespace kvm::daemon {

void AddReport(kvmwire::StatsReport& totals, const kvmwire::StatsReport* before, const kvmwire::StatsReport& report) {
  const bool counted_before = before == nullptr && report.reconnects() > 0;
  const auto add = [&](auto get, auto set) {
    const std::uint64_t now = (report.*get)(), seen = before != nullptr ? (before->*get)() : counted_before ? now : 0;
    const std::uint64_t total = (totals.*get)(), more = now > seen ? now - seen : 0;
    (totals.*set)(more > std::numeric_limits<std::uint64_t>::max() - total ? std::numeric_limits<std::uint64_t>::max() : total + more);
  };
  using Report = kvmwire::StatsReport;
  add(&Report::finds, &Report::set_finds);
  add(&Report::keys_looked_up, &Report::set_keys_looked_up);
  add(&Report::keys_matched, &Report::set_keys_matched);
  add(&Report::imports, &Report::set_imports);
  add(&Report::blocks_imported, &Report::set_blocks_imported);
  add(&Report::blocks_failed, &Report::set_blocks_failed);
  add(&Report::bytes_imported, &Report::set_bytes_imported);
  add(&Report::blocks_published, &Report::set_blocks_published);
  add(&Report::publishes_deferred, &Report::set_publishes_deferred);
  add(&Report::blocks_offloaded, &Report::set_blocks_offloaded);
  add(&Report::offloads_dropped, &Report::set_offloads_dropped);
  add(&Report::blocks_from_host_cache, &Report::set_blocks_from_host_cache);
  // It rises between two connections, never during one.
  if (counted_before) totals.set_reconnects(totals.reconnects() + 1);
}

}  // namespace kvm::daemon
