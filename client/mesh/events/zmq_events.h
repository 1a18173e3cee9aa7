// ZmqEvents: NodeEvents over ZeroMQ. One thread owns the feed and the sockets; others leave what
// they have for it in a box.
//
// A pass (EventFeed::Pass) takes time that grows with what has changed, so the thread rests after
// it for three times as long as it took.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "client/mesh/events/event_sockets.h"
#include "client/mesh/events/node_events.h"
#include "proto/base/thread_safety.h"
#include "proto/base/unique_fd.h"

namespace kvm::mesh {

class ZmqEvents : public NodeEvents {
 public:
  // `wake`: an eventfd.
  ZmqEvents(const EventSettings& settings, const std::string& node, std::unique_ptr<EventSockets> sockets, UniqueFd wake);
  ~ZmqEvents() override;

  void Use(HeldChanges changes) override;
  bool WantsAgain() noexcept override { return wants_again_.exchange(false); }
  bool Describe(BlockDescription description) override;
  void Describe(kvmmesh::EventStatus& out) const override;

 private:
  using Time = std::chrono::steady_clock::time_point;

  void Run();
  void Step();
  void TakeBox();
  void Pass();
  void Wake() noexcept;

  const std::unique_ptr<EventSockets> sockets_;
  const UniqueFd wake_;
  // Of the thread.
  EventFeed feed_;
  bool woken_ = false;    // there is something in the box
  bool changed_ = false;  // the next pass may have something to tell
  Time next_pass_{}, last_sent_{};

  mutable Mutex mutex_;
  std::optional<HeldChanges> held_ KVM_GUARDED_BY(mutex_);
  std::vector<BlockDescription> descriptions_ KVM_GUARDED_BY(mutex_);
  std::size_t waiting_ KVM_GUARDED_BY(mutex_) = 0;  // blocks of descriptions_
  std::uint64_t lost_ KVM_GUARDED_BY(mutex_) = 0;   // blocks of descriptions that found no room
  FeedCounts counts_ KVM_GUARDED_BY(mutex_);        // as of the last step
  std::uint64_t latest_ KVM_GUARDED_BY(mutex_) = 0;
  std::atomic<bool> ending_{false}, wants_again_{false};
  std::thread thread_;
};

}  // namespace kvm::mesh
