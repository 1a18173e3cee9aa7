// BuildStatus: the answer to StatusQuery, what kvmd knows of itself, its domains and its clients.
#pragma once

#include <cstdint>

#include "daemon/broker/client_table.h"
#include "daemon/broker/domain_table.h"
#include "daemon/broker/lessor.h"
#include "daemon/host_cache/host_cache.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

// What is looked at.
struct StatusSources {
  const Config& config;
  const ClientTable& clients;
  const DomainTable& domains;
  const Lessor& lessor;
  const HostCache* host_cache;  // null: none
  std::uint64_t started_ms = 0, rejected_connections = 0, protocol_errors = 0;
};

// As far as `asking` may see it: root and kvmd's own user see all, others their own domain. The
// lists end, and say so, where the reply would leave its frame.
[[nodiscard]] kvmwire::StatusReply BuildStatus(const StatusSources& sources, const Client& asking, const kvmwire::StatusQuery& query);

}  // namespace kvm::daemon
