// LeaseService: clients' messages about leases, and who is told when a lease loses blocks.
//
// Broker hands it AcquireLease, RenewLease and ReleaseLease, the time and the end of clients;
// RegionAnnouncer and OrphanService call CutOff before a region ends or gets a next owner. Owns the Lessor, which
// has the leases. Single-threaded.
#pragma once

#include "daemon/broker/client_table.h"
#include "daemon/broker/lessor.h"

namespace kvm::daemon {

class LeaseService {
 public:
  LeaseService(const Config& config, const ClientTable& clients) : clients_(clients), lessor_(config) {}

  // kProtocol: more blocks than a message may have.
  [[nodiscard]] Status Acquire(Client& client, const kvmwire::ClientMessage& message);
  void Renew(Client& client, const kvmwire::ClientMessage& message);
  void Release(Client& client, const kvmwire::ReleaseLease& release);
  void Expire(SteadyTime now) { lessor_.Expire(now); }
  void Leave(const Client& client) { lessor_.RevokeAllOf(client.id); }
  // Before a region goes, or gets a next owner: leases lose what they hold of it, and their holders
  // are told. How many did.
  std::uint32_t CutOff(const Domain& domain, const Region& region, const char* why);

  const Lessor& lessor() const noexcept { return lessor_; }

 private:
  const ClientTable& clients_;
  Lessor lessor_;
};

}  // namespace kvm::daemon
