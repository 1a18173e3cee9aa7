// A simulation of one node from one seed: kvmd with its host cache and leases, workers of two users
// and hostile clients, in one thread. Each step is one small action of one of them, or a fault:
// a process is killed, a connection is cut, kvmd is killed and started again with or without the
// service manager's store, memory or descriptors run out, the clock jumps. Checks (checks.h) look
// at everything in between.
//
// The same seed makes the same steps. Not the same are the numbers of inodes and descriptors, which
// decide nothing but the order in which kvmd looks at granted memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tests/simulation/checks.h"
#include "tests/simulation/client.h"
#include "tests/simulation/hostile.h"
#include "tests/simulation/world.h"

namespace kvm::simulation {

daemon::Config SmallNode();

class Simulation {
 public:
  // The last one is an admin, too.
  static constexpr std::uint32_t kFirstUser = 1001, kSecondUser = 1002, kHostileUser = 1003;

  explicit Simulation(std::uint64_t seed, Defect defect = Defect::kNone);
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;

  // Throws Violation. `checked`: everything is checked after so many steps.
  void Run(std::uint64_t steps, std::uint64_t checked = 1);
  // All clients end, and kvmd has time to notice; then nothing is left of them.
  void Finish();
  const Counted& counted() const noexcept { return world_.counted; }

 private:
  void Step();
  void Fault();
  void KvmdDoesSomething();
  std::vector<SimClient*>& ColleaguesOf(const SimClient& client) { return client.uid() == kFirstUser ? of_first_ : of_second_; }

  World world_;
  Checks checks_;
  std::vector<std::unique_ptr<SimClient>> clients_;
  std::vector<SimClient*> of_first_, of_second_;
  std::vector<std::unique_ptr<Hostile>> hostile_;
  std::uint64_t next_tick_ns_ = 0, starts_at_ = 0, lacks_until_ = 0;
};

// Runs one seed from its beginning to its end and says what was counted. Throws Violation. Also
// requires that no descriptor, mapping or byte of shared memory of this process is left.
Counted RunSeed(std::uint64_t seed, std::uint64_t steps, Defect defect = Defect::kNone);

}  // namespace kvm::simulation
