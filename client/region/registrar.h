// The regions of a client, and what kvmd knows of them: registers them on every connection, sends
// their deferred publishes, and takes them out again.
//
// The client adds regions that it has made and passes on what the link says; a region's Unregister
// and destructor come here as well, by RegionHost. Regions belong to those who use them: the list
// here is weak. Desired state outlives connections: a region that is in the list is asked for again
// until it is registered or closed.
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

  // `self`: this, as regions hold it. Before everything else.
  void Start(std::weak_ptr<RegionHost> self) { self_ = std::move(self); }

  // ---- the link's thread

  // `connection`: PeerTable's number.
  void Connected(std::uint64_t connection);
  void Disconnected();
  void Tick();
  // kvmd has answered publishes.
  void Answered(const kvmwire::PublishAck& ack);
  std::uint64_t connection() const noexcept { return connection_; }

  // ---- any thread

  // Registers it if there is a connection, and waits for kvmd's answer. The error of a region that
  // kvmd refused, or did not answer for in time: the region is closed then.
  [[nodiscard]] Result<std::shared_ptr<Region>> Add(std::shared_ptr<Region::Impl> region, Deadline deadline);
  // A region that kvmd has registered over that connection already. Waits until this client finds
  // it as its own.
  void AddAdopted(const std::shared_ptr<Region::Impl>& region, std::uint64_t connection);
  bool Has(const std::string& name) const;
  [[nodiscard]] Status Unregister(Region::Impl& region, Deadline deadline) override;
  // What a client's end does with its regions. Waits, up to the client's timeout, for importers of
  // memory that CUDA must not free under them (cuda_ipc), and for no others: other memory lives as
  // long as anybody has it mapped.
  void UnregisterAll();

 private:
  std::vector<std::shared_ptr<Region::Impl>> Regions() const KVM_EXCLUDES(mutex_);
  void AddToList(const std::shared_ptr<Region::Impl>& region) KVM_EXCLUDES(mutex_);
  void Request(const std::shared_ptr<Region::Impl>& region, const Reply& done);
  void RequestRefused();  // after a pause that doubles
  void OnRegistered(const std::shared_ptr<Region::Impl>& region, const kvmwire::RegisterRegionReply& registered);
  void OnAdopted(const std::shared_ptr<Region::Impl>& region, std::uint64_t connection);
  void Pump();
  // Ends a region's blocks and all that this client does with it. Its row, if kvmd is to be told.
  std::optional<RegionRow> LetGo(Region::Impl& region, Deadline deadline);
  void LetGoAtOnce(Region::Impl& region);

  PeerTable& peers_;
  std::weak_ptr<RegionHost> self_;

  // The link's thread only.
  std::uint64_t connection_ = 0;
  std::chrono::milliseconds refused_pause_{0};
  Deadline refused_until_ = Deadline::min();

  mutable Mutex mutex_;
  std::vector<std::weak_ptr<Region::Impl>> regions_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
