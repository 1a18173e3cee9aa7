// kvctl leases: the leases that clients have.
#include <iostream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {
namespace {

boost::json::object LeaseJson(const kvmwire::LeaseStatus& lease) {
  return {{"lease", lease.lease()},
          {"client_id", lease.client_id()},
          {"client", Printable(lease.client_name())},
          {"pid", lease.pid()},
          {"uid", lease.uid()},
          {"domain", Printable(lease.domain())},
          {"model_id", Printable(lease.model_id())},
          {"blocks", lease.blocks()},
          {"bytes", lease.bytes()},
          {"host_cache_blocks", lease.host_cache_blocks()},
          {"left_ms", lease.left_ms()}};
}

}  // namespace

int RunLeases(const CommonOptions& common) {
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  const Result<kvmwire::StatusReply> status = observer->QueryLeases();
  if (!status) return Fail(status.error());
  PrintCutListNote(*status);
  if (common.json) {
    boost::json::array leases;
    for (const auto& lease : status->lease_list()) leases.push_back(LeaseJson(lease));
    PrintJson({{"leases", std::move(leases)}, {"lists_cut", status->lists_cut()}});
    return kHealthy;
  }
  Table table({">lease", "client", ">pid", "domain", "model", ">blocks", ">in host cache", ">in dead workers' memory", ">bytes", ">left"});
  for (const auto& lease : status->lease_list()) {
    table.Add({std::to_string(lease.lease()), Printable(lease.client_name()), std::to_string(lease.pid()), Printable(lease.domain()),
               Printable(lease.model_id()), HumanCount(lease.blocks()), HumanCount(lease.host_cache_blocks()),
               HumanCount(lease.blocks() - lease.host_cache_blocks()), HumanBytes(lease.bytes()),
               HumanSeconds((lease.left_ms() + 999) / 1000)});
  }
  table.Print(std::cout);
  return kHealthy;
}

}  // namespace kvm::ctl
