#include "client/offload/offloader.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "client/connection/wait.h"
#include "client/region/region_impl.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {

void OffloadWait::Begin(std::size_t blocks) {
  std::lock_guard lock(mutex_);
  open_ += blocks;
}

void OffloadWait::End(bool held) {
  std::lock_guard lock(mutex_);
  --open_;
  held_ += held;
  ended_.notify_all();
}

Result<std::size_t> OffloadWait::Wait(Deadline deadline) {
  std::unique_lock lock(mutex_);
  if (!WaitUntil(ended_, lock, deadline, [&] { return open_ == 0; })) {
    return MakeError(Errc::kDeadlineExceeded, std::to_string(open_) + " blocks are not copied to the host cache yet");
  }
  return held_;
}

Offloader::Slab::~Slab() {
  for (std::shared_ptr<LocalMemory>& memory : memories) memory.reset();
  if (withdrawn) withdrawn();
}

// ---- the link's thread --------------------------------------------------------------------------

void Offloader::Connected(const kvmwire::HelloReply& hello) {
  std::lock_guard lock(mutex_);
  connected_ = hello.has_host_cache();
  wants_published_ = connected_ && hello.host_cache().admission() != kvmwire::BEFORE_REUSE;
}

void Offloader::Disconnected() {
  std::lock_guard lock(mutex_);
  connected_ = wants_published_ = grants_lost_ = false;
  for (const Item& item : queue_) DropLocked(item);
  queue_.clear();
  for (auto& [key, slab] : slabs_) {
    if (thread_.joinable()) retired_.push_back(std::move(slab));
  }
  slabs_.clear();
  changed_.notify_all();
}

void Offloader::Granted(const kvmwire::SlabGrant& grant, Result<Fds> fds) {
  if (!fds) {
    std::lock_guard lock(mutex_);
    grants_lost_ = connected_;
    return;
  }
  if (fds->size() != 1 || grant.slots() == 0 || grant.slot_bytes() == 0 || grant.slot_bytes() > grant.size_bytes() / grant.slots()) return;
  auto slab = std::make_shared<Slab>();
  slab->fd = std::move(fds->front());
  slab->size_bytes = grant.size_bytes();
  slab->slot_bytes = grant.slot_bytes();
  slab->slots = grant.slots();
  std::lock_guard lock(mutex_);
  // One that is known is the same slab, and may be mapped.
  if (connected_) slabs_.try_emplace({grant.region(), grant.region_epoch()}, std::move(slab));
}

void Offloader::Withdraw(std::uint32_t row, std::uint32_t region_epoch, std::function<void()> then) {
  {
    std::lock_guard lock(mutex_);
    const auto found = slabs_.find({row, region_epoch});
    if (found != slabs_.end() && thread_.joinable()) {
      found->second->withdrawn = std::move(then);
      retired_.push_back(std::move(found->second));
      slabs_.erase(found);
      changed_.notify_all();
      return;
    }
    // Without a thread nothing has been mapped.
    if (found != slabs_.end()) slabs_.erase(found);
  }
  then();
}

// ---- whoever publishes --------------------------------------------------------------------------

bool Offloader::WantsPublished() const {
  std::lock_guard lock(mutex_);
  return wants_published_;
}

std::size_t Offloader::Offer(const std::shared_ptr<Region::Impl>& region, std::span<const PublishRecord> records, bool asked,
                             const std::shared_ptr<OffloadWait>& wait) {
  std::lock_guard lock(mutex_);
  if (!connected_ || stopped_ || records.empty()) return 0;
  if (!thread_.joinable()) {
    try {
      thread_ = std::thread([this] { Run(); });
    } catch (const std::system_error&) {
      return 0;  // no thread to be had: nothing is offloaded
    }
  }
  const std::size_t count = std::min(records.size(), max_queued_ - std::min(max_queued_, queue_.size()));
  stats_.offloads_dropped.fetch_add(records.size() - count, std::memory_order_relaxed);
  std::vector<Item> items;
  for (const PublishRecord& record : records.first(count)) items.push_back({region, record, asked, wait});
  if (wait) wait->Begin(count);
  queue_.insert(wait ? queue_.begin() : queue_.end(), items.begin(), items.end());
  changed_.notify_all();
  return count;
}

void Offloader::Forget(const Region::Impl& region, Deadline deadline) {
  std::unique_lock lock(mutex_);
  std::erase_if(queue_, [&](const Item& item) {
    const bool its = item.region.lock().get() == &region;
    if (its) DropLocked(item);
    return its;
  });
  if (offering_ == &region) forget_ = true;
  changed_.wait_until(lock, deadline, [&] { return copying_ != &region; });
}

// ---- the thread ---------------------------------------------------------------------------------

void Offloader::DropLocked(const Item& item) {
  stats_.offloads_dropped.fetch_add(1, std::memory_order_relaxed);
  if (item.wait) item.wait->End(false);
}

void Offloader::Drop(std::span<const Item> items) {
  std::lock_guard lock(mutex_);
  for (const Item& item : items) DropLocked(item);
}

// Items of one region that stand side by side.
Offloader::Batch Offloader::TakeBatchLocked() {
  Batch batch;
  while (!queue_.empty() && batch.size() < kMaxStoreBatch) {
    const Item& next = queue_.front();
    const bool same = batch.empty() || (next.asked == batch.front().asked && !next.region.owner_before(batch.front().region) &&
                                        !batch.front().region.owner_before(next.region));
    if (!same) break;
    batch.push_back(std::move(queue_.front()));
    queue_.pop_front();
  }
  return batch;
}

void Offloader::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopped_ || !queue_.empty() || !retired_.empty(); });
    std::vector<std::shared_ptr<Slab>> retired = std::exchange(retired_, {});
    Batch batch = stopped_ ? Batch() : TakeBatchLocked();
    std::shared_ptr<Region::Impl> region = batch.empty() ? nullptr : batch.front().region.lock();
    offering_ = region.get();
    forget_ = false;
    const bool stop = stopped_;
    lock.unlock();
    retired.clear();
    if (stop) return;
    if (region) {
      Process(region, std::move(batch));
    } else {
      Drop(batch);
    }
    lock.lock();
    offering_ = nullptr;
    // Whoever else let go of the region meanwhile: its memory goes here, without the lock.
    lock.unlock();
    region.reset();
    lock.lock();
  }
}

void Offloader::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    for (const Item& item : queue_) DropLocked(item);
    queue_.clear();
    for (auto& [key, slab] : slabs_) retired_.push_back(std::move(slab));
    slabs_.clear();
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  std::vector<std::shared_ptr<Slab>> retired;
  std::lock_guard lock(mutex_);
  retired.swap(retired_);
}

}  // namespace kvm
