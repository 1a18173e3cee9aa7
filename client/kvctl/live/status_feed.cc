#include "client/kvctl/live/status_feed.h"

#include <algorithm>
#include <thread>

#include "client/kvctl/process/interrupt.h"

namespace kvm::ctl {
namespace {

// How soon an interruption is noticed.
constexpr std::chrono::milliseconds kNap{50};

}  // namespace

Result<kvmwire::StatusReply> StatusFeed::Ask() {
  kvmwire::StatusQuery query;
  query.set_clients(true);
  return kvmd_.Ask(query);
}

Status StatusFeed::Begin() {
  Result<kvmwire::StatusReply> status = Ask();
  if (!status) return status.error();
  last_ = std::move(*status);
  asked_ = due_ = Clock::now();
  return {};
}

bool StatusFeed::Wait() {
  due_ = std::max(due_ + std::chrono::duration_cast<Clock::duration>(interval_), Clock::now());
  for (auto left = due_ - Clock::now(); left > Clock::duration::zero() && !Interrupted(); left = due_ - Clock::now())
    std::this_thread::sleep_for(std::min<Clock::duration>(left, kNap));
  return !Interrupted();
}

Result<Activity> StatusFeed::Next() {
  Result<kvmwire::StatusReply> status = Ask();
  if (!status) return status.error();
  const auto now = Clock::now();
  const double seconds = std::max(1e-3, std::chrono::duration<double>(now - asked_).count());
  Activity activity = ActivityBetween(last_, *status, seconds);
  last_ = std::move(*status);
  asked_ = now;
  return activity;
}

}  // namespace kvm::ctl
