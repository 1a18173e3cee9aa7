// A simulated worker: its process, its connection, its pool and what it does with the blocks of
// others. Each call is one small step, so that anything can happen between two of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/simulation/client_link.h"
#include "tests/simulation/peers.h"
#include "tests/simulation/pool.h"
#include "tests/simulation/storer.h"
#include "tests/simulation/world.h"

namespace kvm::simulation {

class SimClient {
 public:
  SimClient(World& world, std::uint32_t uid, std::uint32_t number);

  std::uint32_t uid() const noexcept { return uid_; }
  const Pool* pool() const noexcept { return pool_.get(); }
  // Over its connection of now, which kvmd asks before the region's memory goes.
  bool Maps(const RegionName& region) const { return greeted_ && now_->Maps(region); }

  // `all`: of its domain, itself included.
  void DoSomething(const std::vector<SimClient*>& all);

  // ---- faults

  // As SIGKILL: all that it has is gone, and what it sent completely still arrives, unless it is
  // `cut`. Another process takes its place at once.
  void Die(bool cut);
  void Cut();   // the connection only
  void Exit();  // an orderly end: its blocks end first

 private:
  void Receive(const std::vector<SimClient*>& all);
  void Answered(const Asked& asked, ToClient& answer, const std::vector<SimClient*>& all);
  void Adopted(ToClient& answer);
  void LostConnection();
  void Greeted(ToClient& answer);
  void EndPool();

  void WantPool();
  void Write();
  void Offer();
  void Import();
  void LeaseSomething(const IndexHit& hit);
  void RenewOrRelease();
  void MarkSomething();
  void Unregister();

  World& world_;
  const std::uint32_t uid_;
  const std::string name_;
  const std::uint32_t model_;
  ClientLink link_;
  bool greeted_ = false, asked_for_pool_ = false, offering_ = false;
  bool copies_are_old_ = false;          // of an earlier connection
  std::unique_ptr<Peers> now_, before_;  // of this connection, and of the last one
  std::unique_ptr<Pool> pool_;
  Storer storer_;
  std::vector<std::uint64_t> leases_;
  std::vector<PublishRecord> unpublished_;
  kvmwire::HostCacheUse used_;
};

}  // namespace kvm::simulation
