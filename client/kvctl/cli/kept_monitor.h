// KeptMonitor: a monitor's connection to kvmd that is kept from one question to the next.
#pragma once

#include <optional>

#include "client/kvctl/cli/common_options.h"
#include "client/kvctl/cli/observer.h"

namespace kvm::ctl {

// Connects when it is first asked, and anew after an error. Not thread-safe.
class KeptMonitor {
 public:
  // `common` must outlive this.
  explicit KeptMonitor(const CommonOptions& common) : common_(common) {}

  // Errors: those of Observer::ConnectAsMonitor and Observer::Query.
  [[nodiscard]] Result<kvmwire::StatusReply> Ask(const kvmwire::StatusQuery& query);
  // The same, but asks once more, over a new connection, if one that was kept fails: kvmd may have
  // been restarted since the last question.
  [[nodiscard]] Result<kvmwire::StatusReply> AskAgain(const kvmwire::StatusQuery& query);

 private:
  const CommonOptions& common_;
  std::optional<Observer> connection_;
};

}  // namespace kvm::ctl
