// Broker: what kvmd does with a message, whatever brought it here.
//
// Knows clients, domains and the rules between them; knows nothing of sockets (Connection is its only view of
// one), so tests can drive it without any. Single-threaded. A Status error from Handle means that the
// client broke the protocol and is to be dropped; errors a client can live with go back as replies.
//
// broker.cc: sessions, models, publishing. broker_regions.cc: regions and who is told of them.
// broker_orphans.cc: regions whose owner has gone. broker_restore.cc: what the kvmd before has left.
// broker_offload.cc: the host cache. broker_leases.cc: leases. broker_status.cc: what operators see.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "daemon/broker/announcements.h"
#include "daemon/broker/leases.h"
#include "daemon/broker/state_store.h"
#include "daemon/host_cache/host_cache.h"
#include "daemon/registry/domain.h"
#include "daemon/system/config.h"
#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

struct Credentials {
  std::uint32_t pid = 0, uid = 0, gid = 0;
};

// A client's connection, as the broker sees it. Outlives the client's membership.
class Connection {
 public:
  virtual ~Connection() = default;
  // Never calls back into the broker. What can't be sent for a reason that is kvmd's own does not end the connection: a
  // request is answered with the error instead, an announcement is left out.
  virtual void Send(const kvmwire::ServerMessage& message, const std::vector<int>& fds = {}) = 0;
  // False: kvmd has no descriptors left to let the message wait with, and nothing has been sent.
  virtual bool TrySend(const kvmwire::ServerMessage& message, const std::vector<int>& fds) {
    Send(message, fds);
    return true;
  }
  // Whether it has taken the descriptors that it was sent before.
  virtual bool TakesAnnouncements() const { return true; }
  virtual std::size_t queued_bytes() const = 0;
  // Whether the other end has closed, though what it sent before may not have been read yet.
  virtual bool HungUp() const = 0;
  // Ends the connection at once; the broker's Leave is called from inside.
  virtual void Disconnect() = 0;
};

class Broker : private HostCacheEvents {
 public:
  // `work_to_do` runs whenever Work has something to do. `state_store`, if any, outlives the broker.
  explicit Broker(
      const Config& config, std::function<void()> work_to_do = [] {}, StateStore* state_store = nullptr);
  ~Broker() override;

  // Goes on with what a kvmd before kept. Before the first client.
  void Restore(PersistedState state);

  // `process`: a pidfd of the client's, if there is one.
  ClientId Join(Connection& connection, const Credentials& credentials, UniqueFd process = {});
  // Its pidfd, which lives as long as the client's membership; -1: none.
  int ProcessOf(ClientId client) const;
  // The connection has ended. `died`: the process has, too.
  void Leave(ClientId client, bool died);

  [[nodiscard]] Status Handle(ClientId client, kvmwire::ClientMessage message, std::vector<UniqueFd> fds);
  // The same for a message whose descriptors kvmd could not take: it is refused, the client is kept.
  [[nodiscard]] Status HandleWithoutDescriptors(ClientId client, const kvmwire::ClientMessage& message, const Error& why);
  bool Greeted(ClientId client) const;
  // Sends what the client has still to be told, as far as it takes it.
  void GoOnAnnouncing(ClientId client);
  // Whether so many answers wait behind announcements that the client should not be read from.
  bool Behind(ClientId client) const;

  void Tick(SteadyTime now);                  // often: deadlines, heartbeats
  SteadyTime next_deadline() const noexcept;  // when Tick is needed at the latest
  bool Work();                                // a slice of cleaning up; true if there is more
  void Sweep();
  void Close();  // kvmd ends in good order

  std::uint64_t rejected_connections = 0;
  std::uint64_t protocol_errors = 0;

 private:
  struct Client {
    ClientId id = 0;
    Connection* connection = nullptr;
    Credentials credentials;
    std::shared_ptr<WatchedProcess> process;
    bool greeted = false;
    std::uint64_t instance = 0;  // Hello::instance
    kvmwire::Role role = kvmwire::WORKER;
    bool wants_payload = false;
    std::string name;
    Domain* domain = nullptr;
    std::uint64_t connected_ms = 0;
    kvmwire::StatsReport stats;
    Announcements announcements;
  };
  // An owner that waits for its region to be gone.
  struct PendingUnregister {
    Domain* domain;
    std::uint32_t row, region_epoch;
    ClientId client;
    std::uint64_t request_id;
    SteadyTime deadline;
  };

  // Somebody who waits for orphans to be gone.
  struct PendingReclaim {
    struct Row {
      std::string domain;  // which may be dropped meanwhile
      std::uint32_t row, region_epoch;
    };
    std::vector<Row> regions;
    ClientId client = 0;
    std::uint64_t request_id = 0;
    SteadyTime deadline;
    kvmwire::ReclaimReply reply;
    std::optional<kvmwire::AllocateMemory> then;  // what the memory is asked back for
  };

  // Entries of an old registry on their way into the new one.
  struct Rebuild {
    RegistryView old;
    std::string domain;
    std::unordered_map<std::uint64_t, std::pair<std::uint32_t, std::uint32_t>> rows;  // row and epoch: old → new
    std::uint64_t slot = 0, entries = 0;
    SteadyTime began = std::chrono::steady_clock::now();
  };

  // broker.cc
  Status HandleHello(Client& client, const kvmwire::ClientMessage& message);
  void HandleDeclareModel(Client& client, const kvmwire::ClientMessage& message);
  Status HandlePublish(Client& client, const kvmwire::Publish& publish);
  Status HandleRetract(Client& client, const kvmwire::Retract& retract);
  Result<Domain*> DomainFor(const Credentials& credentials);
  Result<Domain*> DomainNamed(const std::string& name);
  bool DropIdleDomain();
  void ReplyError(Client& client, std::uint64_t request_id, const Error& error);
  void ReplyEmpty(Client& client, std::uint64_t request_id);

  // broker_regions.cc
  void HandleRegisterRegion(Client& client, kvmwire::ClientMessage message, std::vector<UniqueFd> fds);
  void HandleUnregisterRegion(Client& client, const kvmwire::ClientMessage& message);
  void HandleWithdrawAck(Client& client, const kvmwire::WithdrawAck& ack);
  Result<Region*> RegisterNewRegion(Client& client, kvmwire::RegionDescriptor descriptor, std::vector<UniqueFd> fds);
  void Announce(Client& to, const Region& region);  // when its turn comes
  void SendAnnouncements(Client& to);
  bool SendAnnouncement(Client& to, Region& region);  // false: kvmd lacks the descriptors
  void Withdraw(Domain& domain, Region& region, bool owner_died);
  void DropRegionsOf(const Client& client);
  // Regions whose memory is not what it was when they were registered go, and so do slabs of the host cache.
  void DropDamagedRegions();
  void DropDamaged(Domain& domain, Region& region);
  void CheckUnregisters(SteadyTime now);
  // Until when importers are waited for, by what a client asks (0: it leaves that to kvmd).
  SteadyTime AckDeadline(std::uint32_t ack_timeout_ms) const;

  // broker_offload.cc
  Status HandlePrepareStore(Client& client, kvmwire::ClientMessage message);
  Status HandleCompleteStore(Client& client, const kvmwire::CompleteStore& done);
  Status HandleHostCacheUse(Client& client, const kvmwire::HostCacheUse& use);
  bool AnswerPrepareStore(Client& client, const kvmwire::ClientMessage& message);
  void AnswerWaitingStores();
  void SendGrant(Client& client, Slab& slab);
  void LeaveHostCache(const Client& client);
  void DescribeHostCache(kvmwire::HelloReply& reply) const;
  void DescribeHostCache(kvmwire::HostCacheStatus& status) const;
  void DescribeHostCache(const Domain& domain, kvmwire::HostCacheDomain& status) const;
  void SlabOpened(Slab& slab) override;
  void SlabGranted(Slab& slab) override;
  void SlabClosing(Domain& domain, Region& region) override;
  void WorkToDo() override { work_to_do_(); }
  std::uint64_t RegistryBytesToCome() const override;

  // broker_orphans.cc
  void HandleAllocateMemory(Client& client, const kvmwire::ClientMessage& message);
  void ReplyMemory(Client& client, std::uint64_t request_id, const kvmwire::AllocateMemory& request,
                   const kvmwire::ReclaimReply* reclaimed);
  // Starts to give `region` up; `pending` waits for its importers.
  void ReclaimFor(PendingReclaim& pending, Domain& domain, Region& region, const char* why);
  void HandleAdoptRegion(Client& client, const kvmwire::ClientMessage& message);
  void HandleReclaim(Client& client, const kvmwire::ClientMessage& message);
  // True if `region` is kept without its owner.
  bool MakeOrphan(Domain& domain, Region& region, const std::shared_ptr<WatchedProcess>& process);
  Region* OldestOfTheDead(Domain& domain);  // null: there is none
  // The region that a process which was away comes back for; null: there is none.
  Result<Region*> ResumeRegion(Client& client, const kvmwire::RegionDescriptor& descriptor, const std::vector<UniqueFd>& fds);
  void ReclaimOrphan(Domain& domain, Region& region, const char* why, bool wait_for_importers = false);
  void MakeRoomForRegions(Domain& domain);
  void ExpireOrphans(SteadyTime now);
  void CheckReclaims(SteadyTime now);

  // broker_leases.cc
  Status HandleAcquireLease(Client& client, const kvmwire::ClientMessage& message);
  void HandleRenewLease(Client& client, const kvmwire::ClientMessage& message);
  void HandleReleaseLease(Client& client, const kvmwire::ReleaseLease& release);
  void ExpireLeases(SteadyTime now);
  void EndLeasesOf(const Client& client);
  // Before a region goes, or gets a next owner: leases lose what they hold of it. How many did.
  std::uint32_t CutLeases(const Domain& domain, const Region& region, const char* why);
  void DescribeLease(const Lease& lease, kvmwire::LeaseStatus& out) const;
  void DescribeOrphan(const Domain& domain, const Region& region, kvmwire::OrphanStatus& out) const;

  // broker_restore.cc
  Result<Region*> RestoreRegion(PersistedRegion& kept, ClientId owner);
  bool RebuildSome();
  void FinishRebuild(const Rebuild& rebuild, Domain* domain);
  void Persist(Domain& domain, Region& region);  // with the service manager
  void PersistSlab(Domain& domain, Region& region);

  // broker_status.cc
  void HandleStatusQuery(Client& client, const kvmwire::ClientMessage& message);

  const Config& config_;
  const std::function<void()> work_to_do_;
  const std::uint64_t started_ms_ = RealtimeMs();
  ClientId next_client_ = 1;
  std::map<ClientId, std::unique_ptr<Client>> clients_;
  DescriptorQuota descriptors_;  // of all domains
  std::map<std::string, std::unique_ptr<Domain>> domains_;
  std::vector<PendingUnregister> unregisters_;
  std::unique_ptr<HostCache> host_cache_;  // null: no host cache
  std::map<ClientId, kvmwire::ClientMessage> waiting_stores_;
  std::vector<PendingReclaim> reclaims_;
  std::vector<Rebuild> rebuilds_;
  LeaseTable leases_;
  std::uint64_t losses_seen_ = 0;  // MemoryGuard::losses()
  StateStore* const state_store_;
  bool closing_ = false;
};

}  // namespace kvm::daemon
