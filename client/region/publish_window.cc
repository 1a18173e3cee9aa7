#include "client/region/publish_window.h"

#include <algorithm>

#include "client/connection/wait.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {

std::size_t PublishWindow::Send(const RegionRow& row, std::span<const PublishRecord> records, Turn turn) {
  const std::size_t window = turn == Turn::kDeferred ? std::min(kDeferredRecords, max_records_) : max_records_;
  std::size_t sent = 0;
  while (sent < records.size()) {
    const std::span<const PublishRecord> batch = records.subspan(sent, std::min(records.size() - sent, kMaxPublishBatch));
    kvmwire::ClientMessage message;
    kvmwire::Publish& publish = *message.mutable_publish();
    publish.set_region(row.row);
    publish.set_region_epoch(row.region_epoch);
    publish.set_records(batch.data(), batch.size_bytes());
    // The lock is held while sending, so that sequences reach kvmd in order.
    MutexLock lock(mutex_);
    if (unanswered_records_ > 0 && unanswered_records_ + batch.size() > window) break;
    publish.set_sequence(last_sequence_ + 1);
    if (!post_(message)) break;
    ++last_sequence_;
    unanswered_records_ += batch.size();
    unanswered_.emplace_back(last_sequence_, batch.size());
    sent += batch.size();
  }
  return sent;
}

bool PublishWindow::Answered(std::uint64_t sequence) {
  MutexLock lock(mutex_);
  std::size_t answered = 0;
  while (answered < unanswered_.size() && unanswered_[answered].first <= sequence) unanswered_records_ -= unanswered_[answered++].second;
  unanswered_.erase(unanswered_.begin(), unanswered_.begin() + static_cast<std::ptrdiff_t>(answered));
  answered_sequence_ = std::max(answered_sequence_, sequence);
  return unanswered_records_ < kDeferredRecords / 2;
}

void PublishWindow::ConnectionEnded() {
  MutexLock lock(mutex_);
  unanswered_.clear();
  unanswered_records_ = 0;
  answered_sequence_ = last_sequence_;
  answered_changed_.notify_all();
}

bool PublishWindow::WaitForAnswers(Deadline deadline) {
  MutexLock lock(mutex_);
  const std::uint64_t target = last_sequence_;
  return WaitUntil(answered_changed_, lock, deadline, [&]() KVM_REQUIRES(mutex_) { return answered_sequence_ >= target; });
}

}  // namespace kvm
