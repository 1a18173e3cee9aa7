// The parts of a Client: link, peers, what it has declared and registered, publishing, counters.
//
// client_impl.cc: life, events, counters. registration.cc: models and regions. adoption.cc: memory that outlives its
// owner. publishing.cc: publishes. lease.cc: leases.
// Desired state (models, regions, published records) lives here and survives kvmd: on every connection
// it is declared, registered and published anew, by the link's thread, without waiting.
// Locks, in the order they may be taken: Region::Impl::mutex → publish_mutex_ → Link's own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "client/connection/link.h"
#include "client/connection/owner_process.h"
#include "client/lease_impl.h"
#include "client/offload/host_cache_uses.h"
#include "client/offload/offloader.h"
#include "client/peers/device_set.h"
#include "client/peers/peer_mapper.h"
#include "client/peers/peers.h"
#include "kvclient/client.h"
#include "proto/wire/publish_record.h"

namespace kvm {

// Makes memory of these sizes; none: there is none to be had.
using GrantMemory = std::function<Fds(std::span<const std::uint64_t> size_bytes)>;

// Takes a region out. As a request: kvmd answers once importers have let go of it, or after `ack_timeout_ms`. As a message
// without an answer: nobody waits for them.
kvmwire::ClientMessage Unregistration(std::uint32_t row, std::uint32_t region_epoch, std::uint32_t ack_timeout_ms = 0);
// A little less than a caller with this deadline waits, so that kvmd is the one to say what is missing.
std::uint32_t AckTimeoutMs(Deadline deadline);

struct AtomicStats {
  std::atomic<std::uint64_t> finds{0}, keys_looked_up{0}, keys_matched{0}, imports{0}, blocks_imported{0}, blocks_failed{0},
      bytes_imported{0}, blocks_published{0}, publishes_deferred{0}, publishes_refused{0}, connections{0}, blocks_offloaded{0},
      offloads_dropped{0}, offloads_refused{0}, blocks_from_host_cache{0};
};

struct Client::Impl : std::enable_shared_from_this<Client::Impl> {
  explicit Impl(ClientOptions options);
  ~Impl();

  void Start();
  void Stop();  // not on the link's thread
  [[nodiscard]] Status WaitConnected(Deadline deadline);

  [[nodiscard]] Result<Model> DeclareModel(const ModelSpec& spec, Deadline deadline);
  [[nodiscard]] Result<std::shared_ptr<Region>> AllocateRegion(const Model& model, RegionOptions region, Deadline deadline);
  [[nodiscard]] Result<std::shared_ptr<Region>> RegisterRegion(const Model& model, RegionOptions region,
                                                               std::span<const DeviceRange> segments, Deadline deadline);
  [[nodiscard]] Result<AdoptedRegion> AdoptRegion(const Model& model, RegionOptions region, Deadline deadline);
  [[nodiscard]] Result<ReclaimedMemory> ReclaimOrphans(const ReclaimOptions& what, Deadline deadline);
  [[nodiscard]] Result<Lease> AcquireLease(const Match& match, std::chrono::milliseconds ttl, Deadline deadline);
  [[nodiscard]] Status Unregister(Region::Impl& region, Deadline deadline);
  // What a client's end does with its regions. Waits, up to the client's timeout, for importers of memory that CUDA must
  // not free under them (cuda_ipc), and for no others: other memory lives as long as anybody has it mapped.
  void UnregisterAll();

  // Sends records of a registered region; the region's mutex is held. Returns how many were sent; fewer
  // when too many are unanswered (for `deferred` ones the window is smaller).
  std::size_t SendRecords(Region::Impl& region, std::span<const PublishRecord> records, bool deferred);
  [[nodiscard]] Status Flush(Region::Impl& region, Deadline deadline);

  ClientStats Stats() const;

  const OwnerProcess process;
  const ClientOptions options;
  DeviceSet devices;
  PeerTable peers;
  mutable AtomicStats stats;
  PeerMapper mapper;
  HostCacheUses host_cache_uses;
  LeaseList leases;
  Link link;
  Offloader offloader{link, stats, options.max_queued_offloads};

  std::string Domain() const;

 private:
  Status OnConnected(const kvmwire::HelloReply& hello, Fds fds);
  void OnAnnounced(const kvmwire::ServerMessage& message, Result<Fds> fds);
  void OnDisconnected();
  void OnTick();
  void OnAck(const kvmwire::PublishAck& ack);

  [[nodiscard]] Status AcquireSome(const std::shared_ptr<Lease::Impl>& lease, kvmwire::ClientMessage message, Deadline expires,
                                   Deadline deadline);
  // The device's index; peers' regions are mapped for it on return.
  [[nodiscard]] Result<std::size_t> OpenDevice(const DeviceUuid& device, Deadline deadline);
  [[nodiscard]] Result<std::shared_ptr<Region>> AddRegion(std::shared_ptr<Region::Impl> region, Deadline deadline);
  std::vector<Model> Models() const;
  void Redeclare();  // without waiting: kvmd announces the models' regions again
  void RequestRegistration(const std::shared_ptr<Region::Impl>& region, const Reply& done);
  // Ends a region's blocks and all that this client does with it. The message that tells kvmd, if that has it registered.
  std::optional<kvmwire::ClientMessage> LetGo(Region::Impl& region, Deadline deadline);
  void RegisterRefused();  // what kvmd had no room for, after a pause that doubles
  void OnRegistered(const std::shared_ptr<Region::Impl>& region, const kvmwire::RegisterRegionReply& registered);
  // Asks kvmd for memory that can outlive this process; nothing if the region need not, or kvmd is away.
  GrantMemory GrantUntil(const RegionOptions& region, Deadline deadline);
  // The same for a region that is to be registered: what dead processes have left that it takes the place of goes first,
  // and `gave_way` says that there was such. `model`, `region` and `gave_way` outlive what is returned.
  GrantMemory GrantInPlaceOfTheDead(const Model& model, const RegionOptions& region, Deadline deadline, bool& gave_way);
  void AddAdopted(const std::shared_ptr<Region::Impl>& region, std::uint64_t connection);
  void Pump();  // sends deferred records of all regions, as far as the window allows
  std::vector<std::shared_ptr<Region::Impl>> Regions() const;

  // The link's thread only.
  std::uint64_t connection_ = 0;  // PeerTable's number
  std::chrono::milliseconds refused_pause_{0};
  Deadline refused_until_ = Deadline::min();

  mutable std::mutex mutex_;  // desired state
  std::condition_variable connected_changed_;
  bool ready_ = false;  // connected and the registry mapped
  std::string domain_;
  std::vector<Model> models_;
  std::vector<std::weak_ptr<Region::Impl>> regions_;
  std::uint64_t epoch_ = 0;
  Deadline previous_expires_ = Deadline::max();

  std::mutex publish_mutex_;
  std::condition_variable publish_answered_;
  std::uint64_t last_sequence_ = 0, answered_sequence_ = 0;
  std::size_t unanswered_records_ = 0;
  std::vector<std::pair<std::uint64_t, std::size_t>> unanswered_;  // (sequence, records), ascending
  friend struct Region::Impl;
};

}  // namespace kvm
