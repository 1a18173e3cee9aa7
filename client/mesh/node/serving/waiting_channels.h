// WaitingChannels: connections from which something is yet to come: of peers, the proof of who they
// are, and of workers, a request. Their number is bounded, and the one that has waited longest
// makes room for the next, so that processes that connect and say nothing keep no other out. Of the
// io_context's thread.
#pragma once

#include <algorithm>
#include <deque>
#include <memory>

#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

class WaitingChannels {
 public:
  explicit WaitingChannels(std::size_t most) noexcept : most_(most) {}

  // One connection, while it is waited for.
  class Entry {
   public:
    Entry(WaitingChannels& all, std::shared_ptr<Channel> channel) : all_(all), channel_(std::move(channel)) {
      if (all_.channels_.size() >= all_.most_) {
        all_.channels_.front()->Close();
        all_.channels_.pop_front();
      }
      all_.channels_.push_back(channel_);
    }
    ~Entry() { all_.channels_.erase(std::remove(all_.channels_.begin(), all_.channels_.end(), channel_), all_.channels_.end()); }
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    WaitingChannels& all_;
    const std::shared_ptr<Channel> channel_;
  };

 private:
  const std::size_t most_;
  std::deque<std::shared_ptr<Channel>> channels_;  // the oldest first
};

}  // namespace kvm::mesh
