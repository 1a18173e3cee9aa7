// LeaseService: handles clients' messages about leases, and tells a client when its lease loses
// blocks.
//
// Broker passes it AcquireLease, RenewLease and ReleaseLease, the ticks and the end of clients;
// RegionAnnouncer and OrphanService call CutOff before a region ends or gets a next owner. Owns the
// Lessor, which has the leases. Single-threaded.
#pragma once

#include <functional>

#include "daemon/broker/clients/client_table.h"
#include "daemon/broker/services/lessor.h"

namespace kvm::daemon {

class LeaseService {
 public:
  // `work_to_do` is called when Work has something to do. All outlive the service.
  LeaseService(const Config& config, const std::function<void()>& work_to_do, const ClientTable& clients)
      : work_to_do_(work_to_do),
        clients_(clients),
        lessor_(config, [this](const Lease& lease, const RegionCut& cut, std::size_t left) { TellLosing(lease, cut, left); }) {}

  // kProtocol: more blocks than a message may have.
  [[nodiscard]] Status Acquire(Client& client, const kvmwire::ClientMessage& message);
  void Renew(Client& client, const kvmwire::ClientMessage& message);
  void Release(Client& client, const kvmwire::ReleaseLease& release);
  void Expire(SteadyTime now);
  void Leave(const Client& client);
  // A slice of ending leases; true if there is more.
  bool Work(const WorkBudget& budget = WorkBudget()) { return lessor_.Work(budget); }
  // To be called before a region ends or gets another owner: leases lose their blocks in it, and
  // their clients are told, the first of them at once, the others in slices. `why` outlives the
  // service. Returns the number of these leases.
  std::uint32_t CutOff(const Domain& domain, const Region& region, const char* why);

  const Lessor& lessor() const noexcept { return lessor_; }

 private:
  void WorkNow(WorkUnits units = kSliceUnits);
  void TellLosing(const Lease& lease, const RegionCut& cut, std::size_t left) const;

  const std::function<void()>& work_to_do_;
  const ClientTable& clients_;
  Lessor lessor_;
};

}  // namespace kvm::daemon
