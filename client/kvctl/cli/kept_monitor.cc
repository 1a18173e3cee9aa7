#include "client/kvctl/cli/kept_monitor.h"

#include <utility>

namespace kvm::ctl {

Result<kvmwire::StatusReply> KeptMonitor::Ask(const kvmwire::StatusQuery& query) {
  if (!connection_) {
    Result<Observer> connected = Observer::ConnectAsMonitor(common_.socket, common_.timeout());
    if (!connected) return connected.error();
    connection_.emplace(std::move(*connected));
  }
  Result<kvmwire::StatusReply> status = connection_->Query(query);
  if (!status) connection_.reset();
  return status;
}

Result<kvmwire::StatusReply> KeptMonitor::AskAgain(const kvmwire::StatusQuery& query) {
  const bool kept = connection_.has_value();
  Result<kvmwire::StatusReply> status = Ask(query);
  if (!status && kept) status = Ask(query);
  return status;
}

}  // namespace kvm::ctl
