// Copies published blocks to kvmd's host cache on a background thread, so that publishers never
// wait for it.
//
// Regions queue their blocks here. The thread takes blocks of one region at a time and passes them
// to BlockStorer. The queue is bounded: blocks that have no room in it are dropped and counted.
//
// Slabs (memory of kvmd that this client may write) are mapped when they are first written, and
// unmapped when kvmd withdraws them or the connection ends, after a copy under way has ended.
//
// Where the thread lacks memory, the blocks that it is working on are dropped, and it goes on.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "client/connection/link.h"
#include "client/offload/block_storer.h"
#include "client/offload/offload_phase.h"
#include "client/offload/store_queue.h"
#include "client/stats/atomic_stats.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Thread-safe. Connected, Disconnected, Granted and Withdraw are called on the link's thread.
class Offloader final : private StoreQueue {
 public:
  Offloader(Link& link, AtomicStats& stats, std::size_t max_queued) : stats_(stats), max_queued_(max_queued), storer_(link, stats, *this) {}
  ~Offloader() { Stop(); }
  Offloader(const Offloader&) = delete;
  Offloader& operator=(const Offloader&) = delete;

  void Connected(const kvmwire::HelloReply& hello) KVM_EXCLUDES(mutex_);
  void Disconnected() KVM_EXCLUDES(mutex_);
  void Granted(const kvmwire::SlabGrant& grant, Result<Fds> fds) KVM_EXCLUDES(mutex_);
  // Unmaps a slab, then calls `then`: at once if this client has no slab with that row and epoch.
  void Withdraw(const RegionRow& row, std::function<void()> then) KVM_EXCLUDES(mutex_);
  void Stop() KVM_EXCLUDES(mutex_);

  // Whether kvmd asks for each published block.
  bool WantsPublished() const KVM_EXCLUDES(mutex_);
  // Queues blocks, and returns how many had room. With `wait`, they are queued before all others,
  // and `wait` counts their begin and end.
  std::size_t Offer(const std::shared_ptr<OffloadSource>& source, std::span<const PublishRecord> records, bool asked,
                    const std::shared_ptr<OffloadWait>& wait) KVM_EXCLUDES(mutex_);
  // Ends the copies of this source. On return, unless the deadline has passed, no thread reads its
  // memory any more.
  void Forget(const OffloadSource& source, Deadline deadline) KVM_EXCLUDES(mutex_);

 private:
  using Batch = std::vector<OffloadItem>;
  using RowKey = std::pair<std::uint32_t, std::uint32_t>;  // row, region epoch

  // StoreQueue, for the thread.
  bool BeginCopy() override KVM_EXCLUDES(mutex_);
  void EndCopy() noexcept override KVM_EXCLUDES(mutex_);
  std::shared_ptr<GrantedSlab> SlabAt(const RegionRow& row) override KVM_EXCLUDES(mutex_);
  bool TakeGrantsLost() override KVM_EXCLUDES(mutex_);
  void Drop(std::span<OffloadItem> items) noexcept override KVM_EXCLUDES(mutex_);
  void QueueAgain(std::span<const OffloadItem> items) override KVM_EXCLUDES(mutex_);

  void Run() KVM_EXCLUDES(mutex_);
  void TakeBatchLocked(Batch& batch) KVM_REQUIRES(mutex_);
  void DropLocked(OffloadItem& item) noexcept KVM_REQUIRES(mutex_);
  void GoToLocked(OffloadPhase next) KVM_REQUIRES(mutex_);
  void LeaveSourceLocked() KVM_REQUIRES(mutex_);
  bool CopyingLocked() const KVM_REQUIRES(mutex_) { return phase_ == OffloadPhase::kCopying || phase_ == OffloadPhase::kLastCopy; }

  AtomicStats& stats_;
  const std::size_t max_queued_;

  mutable Mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ KVM_GUARDED_BY(mutex_) = false;
  bool connected_ KVM_GUARDED_BY(mutex_) = false;  // to a kvmd that has a host cache
  bool wants_published_ KVM_GUARDED_BY(mutex_) = false;
  std::deque<OffloadItem> queue_ KVM_GUARDED_BY(mutex_);
  std::map<RowKey, std::shared_ptr<GrantedSlab>> slabs_ KVM_GUARDED_BY(mutex_);
  // A slab's descriptor was lost, since this process had none left: kvmd is asked to send it again
  bool grants_lost_ KVM_GUARDED_BY(mutex_) = false;
  // Slabs that the thread unmaps. What leaves slabs_ for here takes no memory.
  std::multimap<RowKey, std::shared_ptr<GrantedSlab>> retired_ KVM_GUARDED_BY(mutex_);
  OffloadPhase phase_ KVM_GUARDED_BY(mutex_) = OffloadPhase::kIdle;
  // The source whose blocks the thread is copying
  const OffloadSource* source_ KVM_GUARDED_BY(mutex_) = nullptr;
  // Started under the mutex, joined by Stop, after which it is never started again
  std::thread thread_;
  BlockStorer storer_;  // used by the thread only
};

}  // namespace kvm
