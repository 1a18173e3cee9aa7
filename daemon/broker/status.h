// BuildStatus: makes the answer to StatusQuery: the state of kvmd, of its domains and of its
// clients.
#pragma once

#include <cstdint>

#include "daemon/broker/client_table.h"
#include "daemon/broker/domain_table.h"
#include "daemon/broker/lessor.h"
#include "daemon/host_cache/host_cache.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

// The objects that it reads.
struct StatusSources {
  const Config& config;
  const ClientTable& clients;
  const DomainTable& domains;
  const Lessor& lessor;
  const HostCache* host_cache;  // null: none
  bool keeps_state = false;     // Persistence::stores()
  std::uint64_t started_ms = 0, rejected_connections = 0, protocol_errors = 0;
};

// Contains what `asking` may see: root and kvmd's own user see all domains, others only their own.
// Lists that would exceed a frame are cut, and the reply says so.
[[nodiscard]] kvmwire::StatusReply BuildStatus(const StatusSources& sources, const Client& asking, const kvmwire::StatusQuery& query);

}  // namespace kvm::daemon
