// The parts of the exporter's page that are tables: devices and the traffic between them, workers,
// prefixes, misses, the host cache. Each is one <section>.
#pragma once

#include <string>

#include "client/kvctl/cli/status_history.h"
#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

// Whether the page has the first digits of blocks' keys: with a key, a guess of a prompt can be
// confirmed, also by a user of another domain.
enum class Keys { kShown, kHidden };

std::string DeviceSection(const kvmwire::StatusReply& status);
std::string WorkerSection(const kvmwire::StatusReply& status);
std::string HotSection(const kvmwire::StatusReply& status, Keys keys);
std::string LastMissSection(const kvmwire::StatusReply& status, StatusHistory::Time now, Keys keys);
std::string HostCacheSection(const kvmwire::StatusReply& status);
// Of all lookups, by reason; the colours are those of MissChart.
std::string MissTable(const kvmwire::StatusReply& status);
std::string EventSection(const StatusHistory& history, StatusHistory::Time now);

}  // namespace kvm::ctl
