// Client::Impl: the parts of a Client, and how they handle events of the link.
//
// Every part is a class with a header of its own; a method of Client calls the part that does the
// work. The parts keep the desired state (models, regions, published records). The link's thread
// declares, registers and publishes it again on every connection, without waiting, so it survives
// kvmd. Order of locks: that of Region::Impl, then of PublishWindow, then of Link; that of
// Region::Impl, then of Offloader, then of OffloadWait.
#pragma once

#include <condition_variable>
#include <memory>
#include <string>

#include "client/computing_marks.h"
#include "client/computing_waits.h"
#include "client/connection/link.h"
#include "client/connection/owner_process.h"
#include "client/declared_models.h"
#include "client/find/find.h"
#include "client/find/match_impl.h"
#include "client/lease/leases.h"
#include "client/misses.h"
#include "client/offload/host_cache_uses.h"
#include "client/offload/offloader.h"
#include "client/peers/device_set.h"
#include "client/peers/peer_mapper.h"
#include "client/peers/peers.h"
#include "client/region/publish_window.h"
#include "client/region/registrar.h"
#include "client/stats/atomic_stats.h"
#include "kvclient/client.h"
#include "proto/base/thread_safety.h"

namespace kvm {

struct Client::Impl : std::enable_shared_from_this<Client::Impl> {
  explicit Impl(ClientOptions options);
  ~Impl();

  void Start();
  void Stop();  // must not be called on the link's thread
  [[nodiscard]] Status WaitConnected(Deadline deadline) KVM_EXCLUDES(mutex_);

  [[nodiscard]] Result<std::shared_ptr<Region>> AllocateRegion(const Model& model, RegionOptions region, Deadline deadline);
  [[nodiscard]] Result<std::shared_ptr<Region>> RegisterRegion(const Model& model, RegionOptions region,
                                                               std::span<const DeviceRange> segments, Deadline deadline);
  [[nodiscard]] Result<AdoptedRegion> AdoptRegion(const Model& model, RegionOptions region, Deadline deadline);

  ClientStats Stats() const;
  // For whom FindOptions wants sources.
  FindTarget TargetOf(const FindOptions& find) const noexcept;
  // Sets Match::Impl::sampled of a match of these keys.
  void NoteSample(std::span<const BlockKey> keys, Match::Impl& match) const;
  std::string Domain() const KVM_EXCLUDES(mutex_);

  const OwnerProcess process;
  const ClientOptions options;
  DeviceSet devices;
  PeerTable peers;
  mutable AtomicStats stats;
  PeerMapper mapper;
  HostCacheUses host_cache_uses;
  Link link;
  DeclaredModels models{link, mapper, devices};
  Misses misses{stats, link, peers, models};
  Leases leases{link, peers};
  ComputingMarks marks{link, peers};
  mutable ComputingWaits waits{stats};
  Offloader offloader{link, stats, options.max_queued_offloads};
  PublishWindow window;
  Registrar registrar{link, peers, window, offloader, stats, options.timeout};

 private:
  // What the region's options say of checksums, with the sample of this client.
  RegionOptions WithSample(RegionOptions region) const;
  // Called on the link's thread.
  Status OnConnected(const kvmwire::HelloReply& hello, Fds fds);
  void OnAnnounced(const kvmwire::ServerMessage& message, Result<Fds> fds);
  void OnDisconnected();
  void OnTick();
  // Tells kvmd what this client has done so far; any thread.
  void ReportCounts() KVM_EXCLUDES(reporting_);

  // Used on the link's thread only.
  std::uint64_t connection_ = 0;  // PeerTable's number of it
  Deadline previous_expires_ = Deadline::max();

  Mutex reporting_;
  mutable Mutex mutex_;
  std::condition_variable connected_changed_;
  bool ready_ KVM_GUARDED_BY(mutex_) = false;  // connected and the registry mapped
  std::string domain_ KVM_GUARDED_BY(mutex_);
  bool connected_before_ KVM_GUARDED_BY(mutex_) = false;
};

}  // namespace kvm
