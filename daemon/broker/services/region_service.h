// RegionService: regions from their registration until their owner unregisters them or leaves, and
// the blocks published from them.
//
// Broker passes it RegisterRegion, UnregisterRegion, Publish and Retract, the ticks and the end of
// clients. RegionAnnouncer announces regions, and OrphanService handles regions whose owner has
// gone. It owns nothing: a domain owns its regions. Single-threaded.
#pragma once

#include <cstdint>
#include <vector>

#include "daemon/broker/clients/client_table.h"
#include "daemon/broker/services/offload_service.h"
#include "daemon/broker/services/orphan_service.h"
#include "daemon/broker/services/region_announcer.h"
#include "daemon/broker/state/domain_table.h"
#include "daemon/broker/state/persistence.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

class RegionService {
 public:
  // All outlive the service.
  RegionService(const Config& config, const ClientTable& clients, const DomainTable& domains, Persistence& persistence,
                RegionAnnouncer& announcer, OffloadService& offload, OrphanService& orphans)
      : config_(config),
        clients_(clients),
        domains_(domains),
        persistence_(persistence),
        announcer_(announcer),
        offload_(offload),
        orphans_(orphans) {}

  // ---- messages

  void Register(Client& client, kvmwire::ClientMessage message, std::vector<PeerFd> fds);
  void Unregister(Client& client, const kvmwire::ClientMessage& message);
  // kProtocol: records that are cut off, or more than a message may have.
  [[nodiscard]] Status Publish(Client& client, kvmwire::ClientMessage message);
  [[nodiscard]] Status Retract(Client& client, kvmwire::ClientMessage message);

  // Withdraws regions, and slabs of the host cache, whose memory has been damaged since they were
  // registered.
  void DropDamagedRegions();
  // Called when a client has left: its regions end without waiting for importers, or become
  // orphans.
  void Leave(const Client& client);

 private:
  Result<Region*> RegisterNew(Client& client, kvmwire::RegionDescriptor descriptor, std::vector<PeerFd> fds);
  void DropDamaged(Domain& domain, Region& region);

  const Config& config_;
  const ClientTable& clients_;
  const DomainTable& domains_;
  Persistence& persistence_;
  RegionAnnouncer& announcer_;
  OffloadService& offload_;
  OrphanService& orphans_;
  std::uint64_t losses_seen_ = 0;  // MemoryGuard::losses()
};

}  // namespace kvm::daemon
