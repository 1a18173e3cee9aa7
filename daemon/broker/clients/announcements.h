// Announcements: the announcements of regions that a client has yet to get, in order.
//
// An announcement carries descriptors, and each that waits or is in flight costs kvmd a descriptor.
// So only the region's name waits here; the message is made when the client is ready to take it,
// from the region's state at that moment. A region is in the queue at most once, which bounds the
// queue.
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
    kvmwire::ServerMessage reply;  // the reply to a request; its announcements come before it
  };

  void Add(std::uint32_t row, std::uint32_t region_epoch) {
    if (waiting_.emplace(row, region_epoch).second) items_.push_back({row, region_epoch, false, {}});
  }
  // Is sent after everything that was added before.
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
