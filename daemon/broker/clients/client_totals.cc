#include "daemon/broker/clients/client_totals.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "daemon/system/work_meter.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
namespace {

constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

// `total` and what has been counted since; a counter that has gone backwards adds nothing.
std::uint64_t Sum(std::uint64_t total, std::uint64_t seen, std::uint64_t now) {
  const std::uint64_t more = now > seen ? now - seen : 0;
  return more > kMost - total ? kMost : total + more;
}

void AddTimes(kvmwire::Durations& totals, const kvmwire::Durations& before, const kvmwire::Durations& now) {
  for (int i = 0; i < now.counts_size(); ++i) {
    if (i == totals.counts_size()) totals.add_counts(0);
    totals.set_counts(i, Sum(totals.counts(i), i < before.counts_size() ? before.counts(i) : 0, now.counts(i)));
  }
  totals.set_sum_ns(Sum(totals.sum_ns(), before.sum_ns(), now.sum_ns()));
}

bool SamePair(const kvmwire::DeviceTraffic& a, const kvmwire::DeviceTraffic& b) {
  return a.from_device() == b.from_device() && a.to_device() == b.to_device();
}

// Of one pair; null: there is none.
const kvmwire::DeviceTraffic* FindPair(const kvmwire::StatsReport& report, const kvmwire::DeviceTraffic& pair) {
  const auto found = std::find_if(report.traffic().begin(), report.traffic().end(), [&](const auto& each) { return SamePair(each, pair); });
  return found == report.traffic().end() ? nullptr : &*found;
}

void AddTraffic(kvmwire::StatsReport& totals, const kvmwire::StatsReport& seen, const kvmwire::StatsReport& report) {
  Spend(static_cast<WorkUnits>(report.traffic_size() * (totals.traffic_size() + seen.traffic_size()) / 8));
  for (const kvmwire::DeviceTraffic& pair : report.traffic()) {
    auto total = std::find_if(totals.mutable_traffic()->begin(), totals.mutable_traffic()->end(),
                              [&](const auto& each) { return SamePair(each, pair); });
    if (total == totals.mutable_traffic()->end()) {
      if (totals.traffic_size() >= static_cast<int>(kMaxDomainTrafficPairs)) continue;
      kvmwire::DeviceTraffic& added = *totals.add_traffic();
      added.set_from_device(pair.from_device());
      added.set_to_device(pair.to_device());
      total = totals.mutable_traffic()->end() - 1;
    }
    const kvmwire::DeviceTraffic* const before = FindPair(seen, pair);
    total->set_blocks(Sum(total->blocks(), before == nullptr ? 0 : before->blocks(), pair.blocks()));
    total->set_bytes(Sum(total->bytes(), before == nullptr ? 0 : before->bytes(), pair.bytes()));
  }
}

// By an earlier connection of this client.
bool CountedBefore(const kvmwire::StatsReport* before, const kvmwire::StatsReport& report) {
  return before == nullptr && report.reconnects() > 0;
}

}  // namespace

void AddCounters(kvmwire::StatsReport& totals, const kvmwire::StatsReport* before, const kvmwire::StatsReport& report) {
  const bool counted_before = CountedBefore(before, report);
  const auto add = [&](auto get, auto set) {
    const std::uint64_t now = (report.*get)(), seen = before != nullptr ? (before->*get)() : counted_before ? now : 0;
    (totals.*set)(Sum((totals.*get)(), seen, now));
  };
  using Report = kvmwire::StatsReport;
  add(&Report::finds, &Report::set_finds);
  add(&Report::keys_looked_up, &Report::set_keys_looked_up);
  add(&Report::keys_matched, &Report::set_keys_matched);
  add(&Report::misses_absent, &Report::set_misses_absent);
  add(&Report::misses_other_model, &Report::set_misses_other_model);
  add(&Report::misses_stale, &Report::set_misses_stale);
  add(&Report::misses_unreachable, &Report::set_misses_unreachable);
  add(&Report::misses_too_short, &Report::set_misses_too_short);
  add(&Report::misses_kvmd_away, &Report::set_misses_kvmd_away);
  add(&Report::imports, &Report::set_imports);
  add(&Report::imports_ended, &Report::set_imports_ended);
  add(&Report::blocks_imported, &Report::set_blocks_imported);
  add(&Report::blocks_failed, &Report::set_blocks_failed);
  add(&Report::imports_failed_stale, &Report::set_imports_failed_stale);
  add(&Report::imports_failed_unmapped, &Report::set_imports_failed_unmapped);
  add(&Report::imports_failed_deadline, &Report::set_imports_failed_deadline);
  add(&Report::imports_failed_error, &Report::set_imports_failed_error);
  add(&Report::imports_failed_corrupt, &Report::set_imports_failed_corrupt);
  add(&Report::bytes_imported, &Report::set_bytes_imported);
  add(&Report::blocks_published, &Report::set_blocks_published);
  add(&Report::publishes_deferred, &Report::set_publishes_deferred);
  add(&Report::blocks_offloaded, &Report::set_blocks_offloaded);
  add(&Report::offloads_dropped, &Report::set_offloads_dropped);
  add(&Report::blocks_from_host_cache, &Report::set_blocks_from_host_cache);
  add(&Report::blocks_verified, &Report::set_blocks_verified);
  add(&Report::blocks_corrupt, &Report::set_blocks_corrupt);
  add(&Report::computing_waits, &Report::set_computing_waits);
  add(&Report::computing_waits_in_vain, &Report::set_computing_waits_in_vain);
}

void AddReport(kvmwire::StatsReport& totals, const kvmwire::StatsReport* before, const kvmwire::StatsReport& report) {
  AddCounters(totals, before, report);
  const bool counted_before = CountedBefore(before, report);
  const kvmwire::StatsReport& seen = before != nullptr ? *before : counted_before ? report : kvmwire::StatsReport::default_instance();
  if (report.has_lookup_times()) AddTimes(*totals.mutable_lookup_times(), seen.lookup_times(), report.lookup_times());
  if (report.has_import_times()) AddTimes(*totals.mutable_import_times(), seen.import_times(), report.import_times());
  AddTraffic(totals, seen, report);
  // It rises between two connections, never during one.
  if (counted_before) totals.set_reconnects(totals.reconnects() + 1);
}

}  // namespace kvm::daemon
