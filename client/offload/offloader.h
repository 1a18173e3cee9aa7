// Copies published blocks to kvmd's host cache on a background thread, so that publishers never
// wait for it.
//
// Regions queue their blocks here; the thread takes those of one region at a time and has
// BlockStorer bring them into the host cache. The queue is bounded: what has no room is dropped and
// counted.
//
// Slabs (memory of kvmd's that this client may write) are mapped when they are first written, and
// unmapped when kvmd withdraws them or the connection ends; a copy under way ends first.
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
  // Lets go of a slab, then runs `then`: at once if this client has none with that row and epoch.
  void Withdraw(const RegionRow& row, std::function<void()> then) KVM_EXCLUDES(mutex_);
  void Stop() KVM_EXCLUDES(mutex_);

  // Whether kvmd asks for what is published.
  bool WantsPublished() const KVM_EXCLUDES(mutex_);
  // How many were queued. `wait`: they go first, and are begun and ended there.
  std::size_t Offer(const std::shared_ptr<OffloadSource>& source, std::span<const PublishRecord> records, bool asked,
                    const std::shared_ptr<OffloadWait>& wait) KVM_EXCLUDES(mutex_);
  // Nothing of this source is read any more on return, or at the deadline.
  void Forget(const OffloadSource& source, Deadline deadline) KVM_EXCLUDES(mutex_);

 private:
  using Batch = std::vector<OffloadItem>;
  using RowKey = std::pair<std::uint32_t, std::uint32_t>;  // row, region epoch

  // For the thread.
  bool BeginCopy() override KVM_EXCLUDES(mutex_);
  void EndCopy() override KVM_EXCLUDES(mutex_);
  std::shared_ptr<GrantedSlab> SlabAt(const RegionRow& row) override KVM_EXCLUDES(mutex_);
  bool TakeGrantsLost() override KVM_EXCLUDES(mutex_);
  void Drop(std::span<const OffloadItem> items) override KVM_EXCLUDES(mutex_);
  void QueueAgain(std::vector<OffloadItem> items) override KVM_EXCLUDES(mutex_);

  void Run() KVM_EXCLUDES(mutex_);
  Batch TakeBatchLocked() KVM_REQUIRES(mutex_);
  void DropLocked(const OffloadItem& item) KVM_REQUIRES(mutex_);
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
  bool grants_lost_ KVM_GUARDED_BY(mutex_) = false;  // there was no descriptor left for a slab's: kvmd is to send it again
  std::vector<std::shared_ptr<GrantedSlab>> retired_ KVM_GUARDED_BY(mutex_);  // for the thread to let go of
  OffloadPhase phase_ KVM_GUARDED_BY(mutex_) = OffloadPhase::kIdle;
  const OffloadSource* source_ KVM_GUARDED_BY(mutex_) = nullptr;  // whose blocks the thread is at work on
  std::thread thread_;                                            // started under the mutex, joined by Stop, behind which nothing starts it
  BlockStorer storer_;                                            // the thread's only
};

}  // namespace kvm
