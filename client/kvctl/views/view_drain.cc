// kvctl drain: whether kvmd may be restarted now, and who would lose what.
#include <iostream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/restart_losses.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {
namespace {

boost::json::object OutlookJson(const RestartOutlook& outlook, bool lists_cut) {
  boost::json::array losses;
  for (const RestartLoss& loss : outlook.losses) {
    losses.push_back({{"kind", loss.kind},
                      {"holder", loss.holder},
                      {"pid", loss.pid},
                      {"uid", loss.uid},
                      {"blocks", loss.blocks},
                      {"bytes", loss.bytes},
                      {"text", loss.text}});
  }
  return {{"loses_nothing", outlook.losses.empty()},
          {"keeps_state", outlook.keeps_state},
          {"workers", outlook.workers},
          {"published_blocks", outlook.published_blocks},
          {"imports_under_way", outlook.imports_under_way},
          {"losses", std::move(losses)},
          {"lists_cut", lists_cut}};
}

void PrintOutlook(const RestartOutlook& outlook) {
  std::cout << (outlook.losses.empty() ? "a restart loses nothing now\n" : "a restart loses what is listed below\n");
  FieldList fields;
  fields.Add("regions, registries", outlook.keeps_state ? "the service manager has copies, the next kvmd restores them"
                                                        : "no service manager has copies: workers register and publish again");
  fields.Add("workers", HumanCount(outlook.workers) + " with " + HumanCount(outlook.published_blocks) +
                            " published blocks; they reconnect by themselves");
  fields.Add("imports under way", HumanCount(outlook.imports_under_way) + "; they go on without kvmd");
  fields.Print(std::cout);
  if (outlook.losses.empty()) return;
  std::cout << '\n';
  Table table({"lost", "of", ">pid", ">uid", ">blocks", ">bytes", "which means"});
  for (const RestartLoss& loss : outlook.losses) {
    table.Add({loss.kind, loss.holder, loss.pid == 0 ? "-" : std::to_string(loss.pid),
               loss.kind == "host_cache" ? "-" : std::to_string(loss.uid), loss.kind == "dead_worker" ? "?" : HumanCount(loss.blocks),
               HumanBytes(loss.bytes), loss.text});
  }
  table.Print(std::cout);
}

}  // namespace

int RunDrain(const CommonOptions& common) {
  Result<Observer> observer = Observer::ConnectAsMonitor(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  kvmwire::StatusQuery query;
  query.set_clients(true);
  query.set_leases(true);
  query.set_orphans(true);
  const Result<kvmwire::StatusReply> status = observer->Query(query);
  if (!status) return Fail(status.error());
  PrintCutListNote(*status);
  const RestartOutlook outlook = OutlookOf(*status);
  if (common.json) {
    PrintJson(OutlookJson(outlook, status->lists_cut()));
  } else {
    PrintOutlook(outlook);
  }
  return outlook.losses.empty() ? kHealthy : kUnhealthy;
}

}  // namespace kvm::ctl
