// PublishWindow: the publishes that have been sent to kvmd and not been answered yet.
//
// A client sends records without waiting, but at most a window of them is unanswered, so that
// neither kvmd nor the socket gets more than it has room for. A record that has no room in the
// window is deferred: its region keeps it and sends it when answers have made room. Deferred
// records may use a smaller part of the window, since new ones are more urgent. All regions of a
// client share one window, and kvmd answers in the order of the sequences.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "client/offload/offload_source.h"
#include "kvclient/types.h"
#include "proto/base/thread_safety.h"
#include "proto/wire/publish_record.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

// Thread-safe.
class PublishWindow {
 public:
  // Sends without waiting; false if not connected.
  using Post = std::function<bool(const kvmwire::ClientMessage&)>;
  enum class Turn { kNew, kDeferred };

  // Deferred records never take more of the window than this.
  static constexpr std::size_t kDeferredRecords = 64 * 1024;

  PublishWindow(Post post, std::size_t max_records) : post_(std::move(post)), max_records_(max_records) {}

  // Sends leading `records` of the region in `row` and returns their number, which is less than
  // records.size() if too many are unanswered or there is no connection.
  std::size_t Send(const RegionRow& row, std::span<const PublishRecord> records, Turn turn) KVM_EXCLUDES(mutex_);
  // Called when kvmd has answered all publishes up to `sequence`. True if there is room for
  // deferred records.
  bool Answered(std::uint64_t sequence) KVM_EXCLUDES(mutex_);
  // Called when the connection has ended: no publish will be answered any more.
  void ConnectionEnded() KVM_EXCLUDES(mutex_);

  // Waits until all publishes that were sent before the call are answered; false if that has not
  // happened by `deadline`.
  bool WaitForAnswers(Deadline deadline) KVM_EXCLUDES(mutex_);
  // Makes WaitForAnswers check its condition again.
  void Wake() { answered_changed_.notify_all(); }

 private:
  const Post post_;
  const std::size_t max_records_;

  Mutex mutex_;
  std::condition_variable answered_changed_;
  std::uint64_t last_sequence_ KVM_GUARDED_BY(mutex_) = 0, answered_sequence_ KVM_GUARDED_BY(mutex_) = 0;
  std::size_t unanswered_records_ KVM_GUARDED_BY(mutex_) = 0;
  // (sequence, records), ascending
  std::vector<std::pair<std::uint64_t, std::size_t>> unanswered_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
