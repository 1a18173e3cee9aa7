// AddReport, AddCounters: what the clients of a domain have done, those that have left included.
//
// The broker calls it for each StatsReport. A client's counters are cumulative over its
// reconnections, and its earlier connection has been counted already; so what it had counted before
// a reconnection is left out.
#pragma once

#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

// Adds what the report's counters of events, blocks and bytes have more than those of `before`, the
// connection's last report; null: it is its first. A counter that has gone backwards adds nothing.
void AddCounters(kvmwire::StatsReport& totals, const kvmwire::StatsReport* before, const kvmwire::StatsReport& report);
// Those, and durations, traffic between devices, and reconnections.
void AddReport(kvmwire::StatsReport& totals, const kvmwire::StatsReport* before, const kvmwire::StatsReport& report);

}  // namespace kvm::daemon
