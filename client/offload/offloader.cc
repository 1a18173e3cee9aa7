#include "client/offload/offloader.h"

#include <algorithm>
#include <cassert>
#include <system_error>
#include <utility>

#include "client/connection/attempt.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {

// ---- the link's thread --------------------------------------------------------------------------

void Offloader::Connected(const kvmwire::HelloReply& hello) {
  MutexLock lock(mutex_);
  connected_ = hello.has_host_cache();
  wants_published_ = connected_ && hello.host_cache().admission() != kvmwire::BEFORE_REUSE;
}

void Offloader::Disconnected() {
  MutexLock lock(mutex_);
  connected_ = wants_published_ = grants_lost_ = false;
  for (OffloadItem& item : queue_) DropLocked(item);
  queue_.clear();
  if (thread_.joinable()) retired_.merge(slabs_);
  slabs_.clear();
  changed_.notify_all();
}

void Offloader::Granted(const kvmwire::SlabGrant& grant, Result<Fds> fds) {
  if (!fds) {
    MutexLock lock(mutex_);
    grants_lost_ = connected_;
    return;
  }
  if (fds->size() != 1 || grant.slots() == 0 || grant.slot_bytes() == 0 || grant.slot_bytes() > grant.size_bytes() / grant.slots()) return;
  auto slab = std::make_shared<GrantedSlab>();
  slab->fd = std::move(fds->front());
  slab->size_bytes = grant.size_bytes();
  slab->slot_bytes = grant.slot_bytes();
  slab->slots = grant.slots();
  MutexLock lock(mutex_);
  // If the slab is known, the known object stays, since it may be mapped already.
  if (connected_) slabs_.try_emplace({grant.region(), grant.region_epoch()}, std::move(slab));
}

void Offloader::Withdraw(const RegionRow& row, std::function<void()> then) {
  {
    MutexLock lock(mutex_);
    const auto found = slabs_.find({row.row, row.region_epoch});
    if (found != slabs_.end() && thread_.joinable()) {
      found->second->withdrawn = std::move(then);
      retired_.insert(slabs_.extract(found));
      changed_.notify_all();
      return;
    }
    // If the thread was never started, no slab is mapped.
    if (found != slabs_.end()) slabs_.erase(found);
  }
  then();
}

// ---- threads that publish
// --------------------------------------------------------------------------

bool Offloader::WantsPublished() const {
  MutexLock lock(mutex_);
  return wants_published_;
}

std::size_t Offloader::Offer(const std::shared_ptr<OffloadSource>& source, std::span<const PublishRecord> records, bool asked,
                             const std::shared_ptr<OffloadWait>& wait) {
  MutexLock lock(mutex_);
  if (!connected_ || stopped_ || records.empty()) return 0;
  if (!thread_.joinable()) {
    try {
      thread_ = std::thread([this] { Run(); });
    } catch (const std::system_error&) {
      return 0;  // no thread could be started: nothing is offloaded
    }
  }
  const std::size_t count = std::min(records.size(), max_queued_ - std::min(max_queued_, queue_.size()));
  stats_.offloads_dropped.fetch_add(records.size() - count, std::memory_order_relaxed);
  std::vector<OffloadItem> items;
  for (const PublishRecord& record : records.first(count)) items.push_back({source, record, asked, wait});
  if (wait) wait->Begin(count);
  queue_.insert(wait ? queue_.begin() : queue_.end(), items.begin(), items.end());
  changed_.notify_all();
  return count;
}

void Offloader::Forget(const OffloadSource& source, Deadline deadline) {
  MutexLock lock(mutex_);
  std::erase_if(queue_, [&](OffloadItem& item) KVM_REQUIRES(mutex_) {
    const bool its = item.source.lock().get() == &source;
    if (its) DropLocked(item);
    return its;
  });
  if (source_ == &source) LeaveSourceLocked();
  changed_.wait_until(lock.native(), deadline, [&]() KVM_REQUIRES(mutex_) { return source_ != &source || !CopyingLocked(); });
}

// ---- the thread ---------------------------------------------------------------------------------

void Offloader::DropLocked(OffloadItem& item) noexcept {
  if (std::exchange(item.ended, true)) return;
  stats_.offloads_dropped.fetch_add(1, std::memory_order_relaxed);
  if (item.wait) item.wait->End(false);
}

void Offloader::Drop(std::span<OffloadItem> items) noexcept {
  MutexLock lock(mutex_);
  for (OffloadItem& item : items) DropLocked(item);
}

// Takes consecutive items of one region from the queue. Where memory is short, as many as there is
// room for, and drops the first one if there is room for none.
void Offloader::TakeBatchLocked(Batch& batch) {
  while (!queue_.empty() && batch.size() < kMaxStoreBatch) {
    const OffloadItem& next = queue_.front();
    const bool same = batch.empty() || (next.asked == batch.front().asked && !next.source.owner_before(batch.front().source) &&
                                        !batch.front().source.owner_before(next.source));
    if (!same) break;
    if (!Attempt([&] { batch.emplace_back(); })) {
      if (!batch.empty()) break;
      DropLocked(queue_.front());
    } else {
      batch.back() = std::move(queue_.front());
    }
    queue_.pop_front();
  }
}

void Offloader::QueueAgain(std::span<const OffloadItem> items) {
  MutexLock lock(mutex_);
  queue_.insert(queue_.begin(), items.begin(), items.end());
}

std::shared_ptr<GrantedSlab> Offloader::SlabAt(const RegionRow& row) {
  MutexLock lock(mutex_);
  const auto found = slabs_.find({row.row, row.region_epoch});
  return found == slabs_.end() ? nullptr : found->second;
}

bool Offloader::TakeGrantsLost() {
  MutexLock lock(mutex_);
  return std::exchange(grants_lost_, false);
}

void Offloader::GoToLocked(OffloadPhase next) {
  assert(MayFollow(phase_, next));
  phase_ = next;
}

void Offloader::LeaveSourceLocked() {
  if (phase_ == OffloadPhase::kOffering) GoToLocked(OffloadPhase::kLeaving);
  if (phase_ == OffloadPhase::kCopying) GoToLocked(OffloadPhase::kLastCopy);
}

bool Offloader::BeginCopy() {
  MutexLock lock(mutex_);
  if (phase_ != OffloadPhase::kOffering) return false;
  GoToLocked(OffloadPhase::kCopying);
  return true;
}

void Offloader::EndCopy() noexcept {
  MutexLock lock(mutex_);
  GoToLocked(phase_ == OffloadPhase::kLastCopy ? OffloadPhase::kLeaving : OffloadPhase::kOffering);
  changed_.notify_all();
}

void Offloader::Run() {
  MutexLock lock(mutex_);
  for (;;) {
    changed_.wait(lock.native(), [this]() KVM_REQUIRES(mutex_) { return stopped_ || !queue_.empty() || !retired_.empty(); });
    std::multimap<RowKey, std::shared_ptr<GrantedSlab>> retired;
    retired.swap(retired_);
    Batch batch;
    if (!stopped_) TakeBatchLocked(batch);
    std::shared_ptr<OffloadSource> source = batch.empty() ? nullptr : batch.front().source.lock();
    source_ = source.get();
    if (source) GoToLocked(OffloadPhase::kOffering);
    const bool stop = stopped_;
    lock.Unlock();
    retired.clear();
    if (stop) return;
    if (source) Attempt([&] { storer_.Process(*source, batch); });
    Drop(batch);
    lock.Lock();
    source_ = nullptr;
    if (source) GoToLocked(OffloadPhase::kIdle);
    // If this is the last reference to the region, its memory is freed here, so the lock is
    // released first.
    lock.Unlock();
    source.reset();
    lock.Lock();
  }
}

void Offloader::Stop() {
  {
    MutexLock lock(mutex_);
    stopped_ = true;
    LeaveSourceLocked();
    for (OffloadItem& item : queue_) DropLocked(item);
    queue_.clear();
    retired_.merge(slabs_);
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  std::multimap<RowKey, std::shared_ptr<GrantedSlab>> retired;
  MutexLock lock(mutex_);
  retired.swap(retired_);
  for (OffloadItem& item : queue_) DropLocked(item);  // what the thread has queued again
  queue_.clear();
}

}  // namespace kvm
