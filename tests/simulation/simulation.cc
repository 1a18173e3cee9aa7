#include "tests/simulation/simulation.h"

#include <fstream>
#include <string>

#include "daemon/system/log.h"
#include "tests/support/process/open_fds.h"

namespace kvm::simulation {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

// Mappings of shared memory that this process has.
int SharedMappings() {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("/memfd:") != std::string::npos;
  return count;
}

constexpr std::uint64_t kConnections = 16;  // more than there are at a time
// Below all levels: the lacks that a simulation makes are errors to kvmd.
constexpr auto kSilent = static_cast<daemon::LogLevel>(0);

struct Field {
  const char* name;
  std::uint64_t Counted::*value;
};
constexpr Field kFields[] = {{"steps", &Counted::steps},
                             {"checks", &Counted::checks},
                             {"blocks published", &Counted::published},
                             {"copies begun", &Counted::copies},
                             {"validated", &Counted::validated},
                             {"of these while kvmd was away", &Counted::validated_while_down},
                             {"of these from the host cache", &Counted::validated_cached},
                             {"wrong bytes that validation caught", &Counted::caught},
                             {"blocks offloaded", &Counted::stores},
                             {"blocks that an admin evicted", &Counted::evicted},
                             {"leases", &Counted::leases},
                             {"adoptions", &Counted::adoptions},
                             {"regions unregistered", &Counted::unregistered},
                             {"processes killed", &Counted::deaths},
                             {"starts of kvmd", &Counted::restarts},
                             {"requests refused", &Counted::refusals},
                             {"hostile messages", &Counted::lies},
                             {"lacks of memory or descriptors met", &Counted::lacks}};

}  // namespace

void Counted::Add(const Counted& more) {
  for (const Field& field : kFields) this->*field.value += more.*field.value;
}

std::string Counted::Text() const {
  std::string out;
  for (const Field& field : kFields) out += std::string(field.name) + " " + std::to_string(this->*field.value) + "\n";
  return out;
}

daemon::Config SmallNode() {
  daemon::Config config;
  config.max_entries = 64;
  config.max_regions = 16;
  config.max_models = 4;
  config.max_domains = 4;
  config.max_orphans = 3;
  config.orphan_ttl_s = 20;
  config.reclaim_others_after_s = 5;
  config.host_cache_slab_bytes = 8 * kBlockBytes;
  config.host_cache_bytes = 6 * config.host_cache_slab_bytes;
  config.max_granted_memory_per_user = 256 << 10;
  config.max_lease_ttl_s = 30;
  config.max_leases_per_client = 8;
  config.max_mark_ttl_s = 5;
  config.max_marked_keys_per_client = 6;
  config.sweep_slots = 16;
  config.zero_on_free = true;
  config.log_level = kSilent;
  config.admins = {Simulation::kHostileUser};
  return config;
}

Simulation::Simulation(std::uint64_t seed, Defect defect) : world_(seed, SmallNode(), defect), checks_(world_) {
  daemon::SetLogLevel(kSilent);
  world_.kvmd.Start(/*stores=*/true);
  for (std::uint32_t number = 0; number < 5; ++number) {
    const std::uint32_t user = number < 3 ? kFirstUser : kSecondUser;
    clients_.push_back(std::make_unique<SimClient>(world_, user, number));
    (user == kFirstUser ? of_first_ : of_second_).push_back(clients_.back().get());
  }
  hostile_.push_back(std::make_unique<Hostile>(world_, kFirstUser, kFirstUser));
  hostile_.push_back(std::make_unique<Hostile>(world_, kHostileUser, kSecondUser));
}

void Simulation::Run(std::uint64_t steps, std::uint64_t checked) {
  for (std::uint64_t end = world_.counted.steps + steps; world_.counted.steps < end;) {
    Step();
    if (++world_.counted.steps % checked == 0) checks_.All();
  }
}

void Simulation::Step() {
  test::Random& random = world_.random;
  world_.machine.Advance(microseconds(random.Between(1, 200)));
  if (world_.machine.now_ns() >= next_tick_ns_) {
    next_tick_ns_ = world_.machine.now_ns() + 50'000'000;
    world_.kvmd.Tick();
    world_.kvmd.Sweep();
    return;
  }
  if (world_.counted.steps >= lacks_until_) world_.machine.lacks_memory = world_.machine.lacks_descriptors = false;
  if (!world_.kvmd.running() && world_.counted.steps >= starts_at_) {
    const bool stores = !random.OneIn(4);
    world_.Note("kvmd starts, with store:", stores);
    ++world_.counted.restarts;
    return world_.kvmd.Start(stores);
  }
  const std::uint64_t choice = random.Below(1000);
  if (choice < 3) return Fault();
  if (choice < 400) return KvmdDoesSomething();
  if (choice < 430) return hostile_[random.Below(hostile_.size())]->DoSomething();
  SimClient& client = *random.Pick(clients_);
  client.DoSomething(ColleaguesOf(client));
}

void Simulation::KvmdDoesSomething() {
  const std::uint64_t choice = world_.random.Below(16);
  if (choice == 0) return world_.kvmd.StoreSome(1 + world_.random.Below(4));
  if (choice <= 2) {
    world_.kvmd.Work();
    return;
  }
  // The next one that has something.
  const std::uint64_t first = world_.random.Next() >> 8;
  for (std::uint64_t i = 0; i < kConnections && !world_.kvmd.ServeOne(first + i); ++i) continue;
}

void Simulation::Fault() {
  test::Random& random = world_.random;
  Machine& machine = world_.machine;
  SimClient& client = *random.Pick(clients_);
  const std::uint64_t choice = random.Below(16);
  if (choice < 4) return client.Die(random.OneIn(2));
  if (choice < 7) return client.Cut();
  if (choice < 8) return client.Exit();
  if (choice < 10) {
    if (!world_.kvmd.running()) return;
    world_.Note("kvmd dies");
    world_.kvmd.Kill();
    starts_at_ = world_.counted.steps + random.Below(400);
  } else if (choice < 12) {
    const auto jump = random.OneIn(3) ? seconds(random.Between(1, 40)) : milliseconds(random.Between(50, 2000));
    world_.Note("the clock jumps, ms:", static_cast<std::uint64_t>(std::chrono::duration_cast<milliseconds>(jump).count()));
    machine.Advance(jump);
  } else {
    (choice < 14 ? machine.lacks_memory : machine.lacks_descriptors) = true;
    lacks_until_ = world_.counted.steps + random.Below(300);
    world_.Note("memory, descriptors are lacking:", machine.lacks_memory, machine.lacks_descriptors);
  }
}

void Simulation::Finish() {
  world_.Note("all end");
  world_.machine.lacks_memory = world_.machine.lacks_descriptors = false;
  if (!world_.kvmd.running()) world_.kvmd.Start(true);
  for (const auto& client : clients_) client->Die(true);
  for (const auto& hostile : hostile_) hostile->Die(true);
  const auto settle = [this] {
    for (std::uint64_t i = 0; i < 2000 || world_.kvmd.Work(); ++i) {
      world_.kvmd.ServeOne(i);
      if (i % 64 == 0) world_.kvmd.StoreSome(64);
    }
  };
  settle();
  // First their orphans end, then the withdrawals that these begin.
  for (int i = 0; i < 4; ++i) {
    world_.machine.Advance(seconds(60));
    world_.kvmd.Tick();
    settle();
    checks_.All();
  }
  checks_.NothingIsLeft();
  world_.counted.lacks = world_.machine.refusals;
}

Counted RunSeed(std::uint64_t seed, std::uint64_t steps, Defect defect) {
  static const bool warm = [] {  // what is made once in a process
    Simulation(0).Run(200);
    return true;
  }();
  static_cast<void>(warm);
  const int fds = test::OpenFds(), mappings = SharedMappings();
  Counted counted;
  {
    Simulation simulation(seed, defect);
    simulation.Run(steps);
    simulation.Finish();
    counted = simulation.counted();
  }
  const std::string where = "\nseed " + std::to_string(seed) + ", after its end\n";
  if (const int now = test::OpenFds(); now != fds) throw Violation(std::to_string(now - fds) + " descriptors are left" + where);
  if (const int now = SharedMappings(); now != mappings) throw Violation(std::to_string(now - mappings) + " mappings are left" + where);
  return counted;
}

}  // namespace kvm::simulation
