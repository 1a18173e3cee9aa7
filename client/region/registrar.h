// Registrar: the regions of a client and their registration. It registers them on every connection,
// sends their deferred publishes, and unregisters them.
//
// The client adds regions that it has made, and passes on the link's events. A region's Unregister
// and destructor call it as well, through RegionHost. The callers own the regions; the list here
// has weak references. The list outlives connections: registration of a region in it is requested
// again until the region is registered or closed.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/peers/peers.h"
#include "client/region/region_host.h"
#include "client/region/region_impl.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Thread-safe.
class Registrar final : public RegionHost {
 public:
  Registrar(Link& its_link, PeerTable& peers, PublishWindow& its_window, Offloader& its_offloader, AtomicStats& its_stats,
            std::chrono::milliseconds its_timeout)
      : RegionHost(its_link, its_window, its_offloader, its_stats, its_timeout), peers_(peers) {}

  // `self`: a weak reference to this object, for the regions. To be called before any other method.
  void Start(std::weak_ptr<RegionHost> self) { self_ = std::move(self); }

  // ---- the link's thread

  // `connection`: PeerTable's number of the connection.
  void Connected(std::uint64_t connection);
  void Disconnected();
  void Tick();
  // kvmd has answered publishes.
  void Answered(const kvmwire::PublishAck& ack);
  std::uint64_t connection() const noexcept { return connection_; }

  // ---- any thread

  // Adds the region to the list, registers it if there is a connection, and waits for kvmd's
  // answer. If kvmd refused it, or did not answer in time, returns that error, and the region is
  // closed.
  [[nodiscard]] Result<std::shared_ptr<Region>> Add(std::shared_ptr<Region::Impl> region, Deadline deadline);
  // Adds a region that kvmd has already registered on that connection. Waits until Find treats its
  // blocks as this client's own.
  void AddAdopted(const std::shared_ptr<Region::Impl>& region, std::uint64_t connection);
  bool Has(const std::string& name) const;
  [[nodiscard]] Status Unregister(Region::Impl& region, Deadline deadline) override;
  // Called at the end of the client: unregisters all regions. Waits, up to the client's timeout,
  // for importers of cuda_ipc memory, which CUDA must not free while they use it. It does not wait
  // for other importers, since other memory lives as long as a process has it mapped.
  void UnregisterAll();

 private:
  std::vector<std::shared_ptr<Region::Impl>> Regions() const KVM_EXCLUDES(mutex_);
  void AddToList(const std::shared_ptr<Region::Impl>& region) KVM_EXCLUDES(mutex_);
  void Request(const std::shared_ptr<Region::Impl>& region, const Reply& done);
  void RequestRefused();  // after a pause that doubles
  void OnRegistered(const std::shared_ptr<Region::Impl>& region, const kvmwire::RegisterRegionReply& registered);
  void OnAdopted(const std::shared_ptr<Region::Impl>& region, std::uint64_t connection);
  void Pump();
  // Ends a region's blocks, and stops all work of this client with it. Returns its row if kvmd has
  // to be told.
  std::optional<RegionRow> LetGo(Region::Impl& region, Deadline deadline);
  void LetGoAtOnce(Region::Impl& region);

  PeerTable& peers_;
  std::weak_ptr<RegionHost> self_;

  // Used on the link's thread only.
  std::uint64_t connection_ = 0;
  std::chrono::milliseconds refused_pause_{0};
  Deadline refused_until_ = Deadline::min();

  mutable Mutex mutex_;
  std::vector<std::weak_ptr<Region::Impl>> regions_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
