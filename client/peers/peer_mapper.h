// PeerMapper: maps the regions that kvmd announces, ahead of their use, and unmaps those that it
// withdraws.
//
// Opening a GPU's memory takes milliseconds and registering host memory with a GPU can take
// seconds, so this has a thread of its own, and the link's thread goes on serving publishes
// meanwhile.
//
// Announcements bring descriptors, up to kMaxFrameFds each, which wait here until their region is
// mapped; while many wait, the link should read no more announcements. A region whose descriptors
// this process could not take, or that needs more descriptors than it has left, stays unmapped with
// that reason. kvmd is asked to announce it again after a pause that doubles.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <random>
#include <vector>

#include "client/connection/link.h"
#include "client/connection/task_thread.h"
#include "client/peers/device_set.h"
#include "client/peers/peers.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Thread-safe. Announcements and withdrawals take effect in the order of the calls.
class PeerMapper {
 public:
  // `takes_more_again`: called, on any thread, when TakesMore may have become true.
  PeerMapper(DeviceSet& devices, PeerTable& peers, std::size_t max_regions, std::function<void()> takes_more_again);
  ~PeerMapper() { Stop(); }

  // `connection`: PeerTable's number of the connection on which the announcement came. `fds`: an
  // error if the descriptors were lost.
  void Announce(std::uint64_t connection, kvmwire::RegionAnnounce announce, Result<Fds> fds);
  // False: so many descriptors wait to be mapped that the link should read no more announcements.
  bool TakesMore() const noexcept { return waiting_fds_.load(std::memory_order_acquire) < max_waiting_fds_; }
  void Withdraw(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch, std::function<void()> released);

  // Waits until all regions that were announced before are mapped. kDeadlineExceeded, kCancelled.
  [[nodiscard]] Status Drain(Deadline deadline) { return thread_.Drain(deadline); }
  void Stop() { thread_.Stop(); }

  // Whether kvmd should be asked to announce regions again. True if, since the last call, a region
  // could not be mapped only because an earlier one in its row still was, or if it is time to retry
  // regions for which there were no descriptors.
  bool TakeRetry();
  std::vector<UnmappedRegion> Unmapped() const;

 private:
  using RowKey = std::pair<std::uint32_t, std::uint32_t>;  // row, region epoch

  // Maps a region; an error if no mapping can be made for any device. `problems`: devices that
  // can't reach it. Takes the descriptors.
  Result<std::shared_ptr<PeerMapping>> Map(const kvmwire::RegionAnnounce& announce, Fds& fds, std::vector<UnmappedRegion>& problems);
  Result<std::shared_ptr<PeerPayload>> MapPayload(const kvmwire::RegionDescriptor& wire, Fds& fds, std::size_t devices,
                                                  std::vector<UnmappedRegion>& problems);
  void Note(const RowKey& key, std::vector<UnmappedRegion> problems);

  DeviceSet& devices_;
  PeerTable& peers_;
  const std::size_t max_regions_;
  const std::size_t max_waiting_fds_;
  const std::function<void()> takes_more_again_;
  std::atomic<std::size_t> waiting_fds_{0};
  std::atomic<bool> retry_{false};
  mutable Mutex mutex_;
  std::map<RowKey, std::vector<UnmappedRegion>> unmapped_ KVM_GUARDED_BY(mutex_);
  // Pause before the last retry for lack of descriptors; 0: there is no lack
  std::chrono::milliseconds lack_pause_ KVM_GUARDED_BY(mutex_){0};
  SteadyTime lack_over_at_ KVM_GUARDED_BY(mutex_) = SteadyTime::max();  // when to try again
  std::minstd_rand random_ KVM_GUARDED_BY(mutex_){std::random_device{}()};
  TaskThread thread_;  // last: it uses everything above
};

}  // namespace kvm
