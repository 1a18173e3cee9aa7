// Maps the regions that kvmd announces, ahead of their use, and unmaps what it withdraws.
//
// Opening a GPU's memory takes milliseconds and registering host memory with a GPU can take seconds, so
// this has a thread of its own, and the link's thread goes on serving publishes meanwhile.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <vector>

#include "client/device_set.h"
#include "client/link.h"
#include "client/peers.h"
#include "client/task_thread.h"

namespace kvm {

// Thread-safe. Announcements and withdrawals take effect in the order of the calls.
class PeerMapper {
 public:
  PeerMapper(DeviceSet& devices, PeerTable& peers, std::size_t max_regions) : devices_(devices), peers_(peers), max_regions_(max_regions) {}
  ~PeerMapper() { Stop(); }

  // `connection`: PeerTable's number of the connection that it came over.
  void Announce(std::uint64_t connection, kvmwire::RegionAnnounce announce, Fds fds);
  void Withdraw(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch, std::function<void()> released);

  // Waits until everything announced before is mapped. kDeadlineExceeded, kCancelled.
  [[nodiscard]] Status Drain(Deadline deadline) { return thread_.Drain(deadline); }
  void Stop() { thread_.Stop(); }

  // Whether something could not be mapped only because its predecessor still was, since the last call:
  // kvmd should be asked to announce it again.
  bool TakeRetry() noexcept { return retry_.exchange(false); }
  std::vector<UnmappedRegion> Unmapped() const;

 private:
  using RowKey = std::pair<std::uint32_t, std::uint32_t>;  // row, region epoch

  // The mapping; an error if none can be made at all. `problems`: devices that can't reach it.
  Result<std::shared_ptr<PeerMapping>> Map(const kvmwire::RegionAnnounce& announce, const Fds& fds, std::vector<UnmappedRegion>& problems);
  Result<std::shared_ptr<PeerPayload>> MapPayload(const kvmwire::RegionDescriptor& wire, const Fds& fds, std::size_t devices,
                                                  std::vector<UnmappedRegion>& problems);

  DeviceSet& devices_;
  PeerTable& peers_;
  const std::size_t max_regions_;
  std::atomic<bool> retry_{false};
  mutable std::mutex mutex_;
  std::map<RowKey, std::vector<UnmappedRegion>> unmapped_;
  TaskThread thread_;  // last: it uses everything above
};

}  // namespace kvm
