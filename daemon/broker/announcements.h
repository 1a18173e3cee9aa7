// What a client is still to be told of regions, in order.
//
// An announcement carries descriptors, and each that waits or is in flight costs kvmd one of its own. So what waits here is
// only the region's name; the message is made when the client takes it, of what the region is by then. A region waits
// once, however often it is to be announced, which bounds the queue.
//
// Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <set>
#include <utility>

#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

class Announcements {
 public:
  struct Item {
    std::uint32_t row = 0, region_epoch = 0;
    bool is_reply = false;
    kvmwire::ServerMessage reply;  // of a request whose announcements come before it
  };

  void Add(std::uint32_t row, std::uint32_t region_epoch) {
    if (waiting_.emplace(row, region_epoch).second) items_.push_back({row, region_epoch, false, {}});
  }
  // Goes out after everything that was added before.
  void AddReply(kvmwire::ServerMessage reply) {
    ++replies_;
    items_.push_back({0, 0, true, std::move(reply)});
  }

  bool empty() const noexcept { return items_.empty(); }
  std::size_t replies() const noexcept { return replies_; }
  const Item& front() const { return items_.front(); }
  void PopFront() {
    const Item& first = items_.front();
    if (first.is_reply) {
      --replies_;
    } else {
      waiting_.erase({first.row, first.region_epoch});
    }
    items_.pop_front();
  }

 private:
  std::deque<Item> items_;
  std::set<std::pair<std::uint32_t, std::uint32_t>> waiting_;  // row, region epoch
  std::size_t replies_ = 0;
};

}  // namespace kvm::daemon
