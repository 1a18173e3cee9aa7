#include "daemon/server/manager_feed.h"

#include <poll.h>

#include <boost/asio/post.hpp>

namespace kvm::daemon {
namespace {

constexpr std::size_t kMessagesAtOnce = 64;
constexpr std::chrono::milliseconds kPause{20};

}  // namespace

void ManagerFeed::Start() {
  manager_.queue().OnWaiting([this] { Feed(); });
  Feed();
}

void ManagerFeed::Feed() {
  NotifyQueue& queue = manager_.queue();
  if (feeding_ || queue.waiting() == 0) return;
  feeding_ = true;
  const auto feed = [this](const boost::system::error_code&) {
    NotifyQueue& waiting = manager_.queue();
    if (writable_.is_open()) static_cast<void>(writable_.release());
    const std::size_t before = waiting.waiting();
    waiting.Feed(kMessagesAtOnce);
    // Writable, and yet it takes nothing: kvmd's user has too many descriptors in flight.
    stuck_ = waiting.full() && waiting.waiting() == before;
    feeding_ = false;
    Feed();
  };
  boost::system::error_code error;
  if (stuck_) {
    pause_.expires_after(kPause);
    return pause_.async_wait(feed);
  }
  if (queue.full()) writable_.assign(queue.fd(), error);
  if (writable_.is_open() && !error) {
    writable_.async_wait(boost::asio::posix::stream_descriptor::wait_write, feed);
  } else {
    boost::asio::post(context_, [feed] { feed({}); });
  }
}

void ManagerFeed::Flush(std::chrono::steady_clock::time_point deadline) {
  NotifyQueue& queue = manager_.queue();
  while (!queue.Feed(kMessagesAtOnce) && std::chrono::steady_clock::now() < deadline) {
    pollfd writable{queue.fd(), POLLOUT, 0};
    if (queue.full()) static_cast<void>(::poll(&writable, 1, 5));
  }
}

void ManagerFeed::FeedWatchdog(std::chrono::steady_clock::time_point now) {
  if (!manager_.watchdog() || now - watchdog_fed_ < *manager_.watchdog() / 3) return;
  watchdog_fed_ = now;
  manager_.Notify("WATCHDOG=1\n");
}

}  // namespace kvm::daemon
