// LeaseService: handles clients' messages about leases, and tells a client when its lease loses
// blocks.
//
// Broker passes it AcquireLease, RenewLease and ReleaseLease, the ticks and the end of clients;
// RegionAnnouncer and OrphanService call CutOff before a region ends or gets a next owner. Owns the
// Lessor, which has the leases. Single-threaded.
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
  // To be called before a region ends or gets another owner: leases lose their blocks in it, and
  // their clients are told. Returns the number of these leases.
  std::uint32_t CutOff(const Domain& domain, const Region& region, const char* why);

  const Lessor& lessor() const noexcept { return lessor_; }

 private:
  const ClientTable& clients_;
  Lessor lessor_;
};

}  // namespace kvm::daemon
