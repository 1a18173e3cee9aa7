// StatusFeed: kvmd's status again and again, at even intervals, and what happened in between.
#pragma once

#include <chrono>
#include <cstdint>

#include "client/kvctl/cli/common_options.h"
#include "client/kvctl/cli/kept_monitor.h"
#include "client/kvctl/live/activity.h"

namespace kvm::ctl {

// Not thread-safe.
class StatusFeed {
 public:
  StatusFeed(const CommonOptions& common, double interval_s) : kvmd_(common), interval_(interval_s) {}

  // The first status, from which the first activity counts. Errors: those of
  // Observer::ConnectAsMonitor.
  [[nodiscard]] Status Begin();
  // Sleeps to the end of the interval. False: interrupted.
  bool Wait();
  // What happened since the last answer. An error leaves that one in place; the next call connects
  // anew.
  [[nodiscard]] Result<Activity> Next();

  const kvmwire::StatusReply& status() const noexcept { return last_; }

 private:
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] Result<kvmwire::StatusReply> Ask();

  KeptMonitor kvmd_;
  const std::chrono::duration<double> interval_;
  kvmwire::StatusReply last_;
  Clock::time_point asked_, due_;
};

}  // namespace kvm::ctl
