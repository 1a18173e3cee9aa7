#include "client/kvctl/views/restart_losses.h"

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

void AddLeases(const kvmwire::StatusReply& status, std::vector<RestartLoss>& losses) {
  for (const kvmwire::LeaseStatus& lease : status.lease_list()) {
    losses.push_back({.kind = "lease",
                      .holder = Printable(lease.client_name()),
                      .pid = lease.pid(),
                      .uid = lease.uid(),
                      .blocks = lease.blocks(),
                      .bytes = lease.bytes(),
                      .text = "a lease ends with its connection: the blocks may be evicted until the worker acquires another"});
  }
}

// Without copies at the service manager, what only kvmd has goes with it.
void AddMemory(const kvmwire::StatusReply& status, std::vector<RestartLoss>& losses) {
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    if (domain.host_cache().blocks() == 0) continue;
    losses.push_back({.kind = "host_cache",
                      .holder = Printable(domain.name()),
                      .blocks = domain.host_cache().blocks(),
                      .bytes = domain.host_cache().used_bytes(),
                      .text = "the domain's blocks in the host cache are gone"});
  }
  for (const kvmwire::OrphanStatus& orphan : status.orphan_list()) {
    losses.push_back({.kind = "dead_worker",
                      .holder = Printable(orphan.region()),
                      .pid = orphan.owner_pid(),
                      .uid = orphan.owner_uid(),
                      .bytes = orphan.bytes(),
                      .text = orphan.owner_runs() ? "its process is not connected now, and registers again when it is"
                                                  : "the memory of a dead worker is gone, so that no worker can adopt it"});
  }
}

}  // namespace

RestartOutlook OutlookOf(const kvmwire::StatusReply& status) {
  RestartOutlook outlook{.keeps_state = status.keeps_state()};
  for (const kvmwire::ClientStatus& client : status.client_list()) {
    if (client.role() != kvmwire::WORKER) continue;
    ++outlook.workers;
    outlook.published_blocks += client.entries();
    const kvmwire::StatsReport& stats = client.stats();
    if (stats.imports() > stats.imports_ended()) outlook.imports_under_way += stats.imports() - stats.imports_ended();
  }
  AddLeases(status, outlook.losses);
  if (!outlook.keeps_state) AddMemory(status, outlook.losses);
  return outlook;
}

}  // namespace kvm::ctl
