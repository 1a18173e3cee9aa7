// StatusAnswer: makes the answer to StatusQuery, a slice at a time: the state of kvmd, of its
// domains and of its clients, each as it is when the answer gets to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "daemon/broker/clients/client_table.h"
#include "daemon/broker/services/lessor.h"
#include "daemon/broker/state/domain_table.h"
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

class StatusAnswer {
 public:
  // What the sources refer to outlives the answer.
  StatusAnswer(StatusSources sources, kvmwire::StatusQuery query);

  // One slice. True: the reply is complete. It contains what `asking` may see: root and kvmd's own
  // user see all domains, others only their own. Lists that would exceed a frame are cut, and the
  // reply says so.
  bool GoOn(const Client& asking, const WorkBudget& budget);
  kvmwire::StatusReply& reply() noexcept { return reply_; }

 private:
  const StatusSources sources_;
  const kvmwire::StatusQuery query_;
  kvmwire::StatusReply reply_;
  std::size_t bytes_ = 0;  // of the reply
  bool begun_ = false;
  // The last one that is in the reply, of each list
  std::string domain_, orphans_of_;
  ClientId client_ = 0;
  LeaseId lease_ = 0;
};

}  // namespace kvm::daemon
