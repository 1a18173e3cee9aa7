// Which publishes have been sent to kvmd and not been answered yet.
//
// A client sends records without waiting, but no more than a window of them unanswered, so that
// neither kvmd nor the socket has to take what they have no room for. What finds no room is
// deferred: its region keeps the record and sends it when answers have made room. Deferred records
// get a smaller part of the window, since new ones come first. All regions of a client share one
// window, and kvmd answers in the order of the sequences.
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
  // Sends without waiting; false: not connected.
  using Post = std::function<bool(const kvmwire::ClientMessage&)>;
  enum class Turn { kNew, kDeferred };

  // Deferred records never take more of the window than this.
  static constexpr std::size_t kDeferredRecords = 64 * 1024;

  PublishWindow(Post post, std::size_t max_records) : post_(std::move(post)), max_records_(max_records) {}

  // How many leading `records` of the region in `row` were sent: fewer than there are when too many
  // are unanswered, or without a connection.
  std::size_t Send(const RegionRow& row, std::span<const PublishRecord> records, Turn turn) KVM_EXCLUDES(mutex_);
  // kvmd has answered everything up to `sequence`. True: there is room for deferred records.
  bool Answered(std::uint64_t sequence) KVM_EXCLUDES(mutex_);
  // Nothing that was sent will be answered any more.
  void ConnectionEnded() KVM_EXCLUDES(mutex_);

  // Waits until everything sent before the call is answered; false: not by `deadline`.
  bool WaitForAnswers(Deadline deadline) KVM_EXCLUDES(mutex_);
  // Lets WaitForAnswers look again.
  void Wake() { answered_changed_.notify_all(); }

 private:
  const Post post_;
  const std::size_t max_records_;

  Mutex mutex_;
  std::condition_variable answered_changed_;
  std::uint64_t last_sequence_ KVM_GUARDED_BY(mutex_) = 0, answered_sequence_ KVM_GUARDED_BY(mutex_) = 0;
  std::size_t unanswered_records_ KVM_GUARDED_BY(mutex_) = 0;
  std::vector<std::pair<std::uint64_t, std::size_t>> unanswered_ KVM_GUARDED_BY(mutex_);  // (sequence, records), ascending
};

}  // namespace kvm
