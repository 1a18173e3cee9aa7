// kvmd in a simulation: the broker with all its services, the service manager's store behind it,
// and the connections of its clients. It is started, killed and started again by the simulation,
// and does one thing at a time when it is told to.
#pragma once

#include <map>
#include <memory>

#include "daemon/broker/broker.h"
#include "daemon/broker/state/state_store.h"
#include "daemon/system/config.h"
#include "tests/simulation/machine.h"
#include "tests/simulation/service_store.h"
#include "tests/simulation/wire.h"

namespace kvm::simulation {

class Kvmd {
 public:
  Kvmd(Machine& machine, const daemon::Config& config) : machine_(machine), config_(config) {}
  Kvmd(const Kvmd&) = delete;
  Kvmd& operator=(const Kvmd&) = delete;
  ~Kvmd() { Kill(); }

  bool running() const noexcept { return broker_ != nullptr; }
  // `stores`: under a service manager that keeps descriptors; otherwise what it has is lost.
  void Start(bool stores);
  void Kill();  // as SIGKILL: what waits to be stored is not

  // `process`: readable once the client's process has ended. Null if kvmd is down.
  std::shared_ptr<SimConnection> Connect(std::uint32_t uid, std::uint32_t pid, UniqueFd process);

  // One step of one connection: a piece of a message arrives, a message is handled, a slice of one
  // is done, or its end is seen. False: that connection has nothing.
  bool Serve(SimConnection& connection);
  bool ServeOne(std::uint64_t choice);  // of the connection that the number picks
  void Tick();
  void Sweep();
  bool Work();  // true if there is more
  void StoreSome(std::uint64_t most);

  daemon::Broker* broker() const noexcept { return broker_.get(); }
  const daemon::Config& config() const noexcept { return config_; }
  const std::map<daemon::ClientId, std::shared_ptr<SimConnection>>& connections() const noexcept { return connections_; }
  // The most that one step has cost since the last call (work_meter.h).
  daemon::WorkUnits TakeMostWork() noexcept { return std::exchange(most_work_, 0); }
  // Whether Work had nothing left to do, and nothing has been done since.
  bool quiet() const noexcept { return quiet_; }
  // Whether it has done anything since the last call.
  bool TakeChanged() noexcept { return std::exchange(changed_, false); }
  std::uint64_t starts = 0, dropped = 0;

 private:
  template <class Step>
  void Measured(Step&& step) {
    const daemon::WorkUnits before = daemon::WorkMeter::spent();
    step();
    most_work_ = std::max(most_work_, daemon::WorkMeter::spent() - before);
    quiet_ = false;
    changed_ = true;
  }
  void Leave(daemon::ClientId id, bool died);
  // Drops a client whose message has ended so.
  void Drop(daemon::ClientId id, const Status& outcome);

  Machine& machine_;
  const daemon::Config config_;
  ServiceStore service_;
  std::unique_ptr<daemon::ServiceManager> manager_;
  std::unique_ptr<daemon::StateStore> store_;
  std::unique_ptr<daemon::Broker> broker_;
  std::map<daemon::ClientId, std::shared_ptr<SimConnection>> connections_;
  daemon::WorkUnits most_work_ = 0;
  bool quiet_ = false, changed_ = true;
};

}  // namespace kvm::simulation
