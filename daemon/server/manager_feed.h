// ManagerFeed: sends kvmd's messages to the service manager from the event loop. NotifyQueue
// (daemon/system/notify_queue.h) holds what is still to be said; this class waits until the
// manager's socket takes more, and feeds the queue in slices, so that a manager that reads slowly
// never keeps kvmd's thread.
//
// Server owns it and calls it on the loop's thread. It owns neither the queue nor its socket.
#pragma once

#include <chrono>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>

#include "daemon/system/service_manager.h"

namespace kvm::daemon {

class ManagerFeed {
 public:
  // Both outlive the object.
  ManagerFeed(boost::asio::io_context& context, const ServiceManager& manager) : manager_(manager), context_(context) {}
  ManagerFeed(const ManagerFeed&) = delete;
  ManagerFeed& operator=(const ManagerFeed&) = delete;

  // From now on what waits is sent while the loop runs.
  void Start();
  // Waits until everything has been sent, or until `deadline`: what a next kvmd does not learn from
  // the manager's store, it does not have. For the time after the loop's end.
  void Flush(std::chrono::steady_clock::time_point deadline);
  // Says that kvmd's loop runs, if it is time again: the manager restarts a kvmd whose loop does
  // not run.
  void FeedWatchdog(std::chrono::steady_clock::time_point now);

 private:
  void Feed();

  const ServiceManager& manager_;
  boost::asio::io_context& context_;
  boost::asio::posix::stream_descriptor writable_{context_};  // borrowed while the queue waits
  boost::asio::steady_timer pause_{context_};
  std::chrono::steady_clock::time_point watchdog_fed_{};
  bool feeding_ = false;
  bool stuck_ = false;
};

}  // namespace kvm::daemon
