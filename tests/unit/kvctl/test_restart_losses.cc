// kvctl drain: what a restart of kvmd would cost, and whom.
#include "client/kvctl/views/restart_losses.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

// One worker with two imports under way, a lease, a host cache and a dead worker's memory.
kvmwire::StatusReply BusyKvmd(bool keeps_state) {
  kvmwire::StatusReply status;
  status.set_keeps_state(keeps_state);
  kvmwire::ClientStatus& worker = *status.add_client_list();
  worker.set_entries(40);
  worker.mutable_stats()->set_imports(7);
  worker.mutable_stats()->set_imports_ended(5);
  status.add_client_list()->set_role(kvmwire::OBSERVER);
  kvmwire::LeaseStatus& lease = *status.add_lease_list();
  lease.set_client_name("router\x1b[2J");
  lease.set_blocks(12);
  kvmwire::DomainStatus& domain = *status.add_domains();
  domain.set_name("uid-1000");
  domain.mutable_host_cache()->set_blocks(3);
  domain.mutable_host_cache()->set_used_bytes(300);
  status.add_orphan_list()->set_region("pool");
  return status;
}

std::vector<std::string> Kinds(const RestartOutlook& outlook) {
  std::vector<std::string> kinds;
  for (const RestartLoss& loss : outlook.losses) kinds.push_back(loss.kind);
  return kinds;
}

}  // namespace

TEST_CASE("Drain: where the service manager keeps the state, leases alone are lost", "[unit]") {
  const RestartOutlook outlook = OutlookOf(BusyKvmd(true));
  CHECK(outlook.workers == 1);
  CHECK(outlook.published_blocks == 40);
  CHECK(outlook.imports_under_way == 2);
  CHECK(Kinds(outlook) == std::vector<std::string>{"lease"});
  CHECK(outlook.losses[0].blocks == 12);
  CHECK(outlook.losses[0].holder == "router?[2J");
}

TEST_CASE("Drain: without a service manager, the host cache and dead workers' memory are lost too", "[unit]") {
  const RestartOutlook outlook = OutlookOf(BusyKvmd(false));
  CHECK(Kinds(outlook) == std::vector<std::string>{"lease", "host_cache", "dead_worker"});
  CHECK(outlook.losses[1].holder == "uid-1000");
  CHECK(outlook.losses[1].bytes == 300);
}

TEST_CASE("Drain: a kvmd with nothing but workers loses nothing", "[unit]") {
  kvmwire::StatusReply status;
  status.add_client_list()->set_entries(40);
  status.add_domains()->mutable_host_cache();
  CHECK(OutlookOf(status).losses.empty());
}
