// What a restart and an adoption cost: the table of docs/BENCHMARKS.md, "Lifetime".
//
//   [KVM_LIFETIME_BLOCKS=100000] [KVM_LIFETIME_ROUNDS=9] bench_lifetime
//
// Adoption: a worker publishes so many blocks and is killed; timed is AdoptRegion in another
// process that is connected already. Restart: four workers find, import and publish at full speed,
// kvmd is killed and started anew 200 ms later (RestartSec of the unit); timed is how long until a
// publish made at once is acknowledged again. The workers count lookups of a prompt that everybody
// has published, which must never miss, and compare every byte.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <thread>

#include "tests/catch.h"
#include "tests/support/data/random.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/supervisor.h"
#include "tests/support/process/child_main.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace kvm::test;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kWorkers = 4;
constexpr const char* kSteady = "steady:40";
constexpr std::uint32_t kPool = 4096, kBlockBytes = 16 << 10;

double Milliseconds(Clock::duration time) { return std::chrono::duration<double, std::milli>(time).count(); }

[[noreturn]] void Die(const std::string& why) {
  std::cerr << "bench_lifetime: " << why << std::endl;
  std::exit(1);
}

std::unique_ptr<Worker> MustStart(const WorkerOptions& options) {
  Result<std::unique_ptr<Worker>> worker = Worker::Start(options);
  if (!worker) Die(options.name + ": " + worker.error().ToString());
  return std::move(*worker);
}

// Publishes `blocks` blocks and says "ready"; then waits to be killed.
int RunPool(const std::vector<std::string>& arguments) {
  const auto blocks = static_cast<std::uint32_t>(std::stoul(arguments.at(1)));
  const auto worker = MustStart({.socket = arguments.at(0), .name = "pool", .blocks = blocks, .block_bytes = 4096});
  worker->Publish("pool:" + std::to_string(blocks), 0);
  if (!worker->Flush(std::chrono::seconds(60))) return 1;
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);) continue;
  return 0;
}

// Finds, imports and publishes until its input says "end"; prints lookups, lost lookups, imported
// and wrong blocks, published blocks that are not found in the end.
int RunLoad(const std::vector<std::string>& arguments) {
  const std::string name = "load-" + arguments.at(1);
  const auto worker = MustStart({.socket = arguments.at(0), .name = name, .blocks = kPool, .block_bytes = kBlockBytes});
  worker->Publish(kSteady, 0);
  worker->Publish(name + ":200", 100);
  static_cast<void>(worker->Flush());
  std::cout << "ready" << std::endl;
  std::string line;
  std::getline(std::cin, line);
  Eventually([&] { return worker->Find(kSteady, {}, {.destination = nullptr, .include_own = false}).size() == 40; });
  std::atomic<bool> end{false};
  std::thread input([&] {
    std::getline(std::cin, line);
    end = true;
  });
  Random random(std::stoull(arguments.at(1)));
  std::uint64_t lookups = 0, lost = 0, imported = 0, wrong = 0;
  while (!end) {
    ++lookups;
    lost += worker->Find(kSteady, {}, {.destination = nullptr, .include_own = false}).size() != 40;
    const std::string prompt = "load-" + std::to_string(random.Below(kWorkers)) + ":" + std::to_string(random.Between(1, 200));
    const std::vector<BlockKey> keys = worker->Keys(prompt);
    const Match match = worker->Find(prompt, {}, {.destination = nullptr, .include_own = false});
    const ImportCheck check = worker->Import(match, std::span(keys).first(match.size()), 400);
    imported += check.valid;
    wrong += check.wrong;
    worker->Publish("new" + std::to_string(random.Below(1000)) + ":20", static_cast<std::uint32_t>(700 + random.Below(kPool - 720)));
  }
  input.join();
  // What it holds for good is found again by everybody: its own 200 and the steady ones.
  std::uint64_t missing = 0;
  static_cast<void>(worker->Flush(std::chrono::seconds(30)));
  for (int other = 0; other < kWorkers; ++other) {
    const std::string prompt = "load-" + std::to_string(other) + ":200";
    const auto found = [&] { return worker->Find(prompt).size(); };
    Eventually([&] { return found() == 200; });
    missing += 200 - found();
  }
  std::cout << lookups << " " << lost << " " << imported << " " << wrong << " " << missing << std::endl;
  std::getline(std::cin, line);  // stays until all have looked
  return 0;
}

const ChildMain kPoolMain("lifetime-pool", RunPool);
const ChildMain kLoadMain("lifetime-load", RunLoad);

std::uint64_t FromEnvironment(const char* name, std::uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? std::strtoull(value, nullptr, 10) : otherwise;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Adoption(std::uint32_t blocks, int rounds) {
  std::vector<double> times;
  for (int round = 0; round < rounds; ++round) {
    Supervisor kvmd({"--max-entries", "1000000"});
    {
      ChildProcess pool = ChildProcess::Self("lifetime-pool", {kvmd.socket(), std::to_string(blocks)});
      if (pool.ReadLine(std::chrono::seconds(120)) != "ready") Die("the pool's worker did not get ready");
      pool.Kill();
    }
    const auto adopter = MustStart({.socket = kvmd.socket(), .name = "adopter", .blocks = 0});
    RegionOptions options;
    options.name = "pool";
    options.geometry = Geometry::Contiguous(blocks, 4096);
    SleepMs(20);  // kvmd has seen the end of the process
    const auto start = Clock::now();
    const Result<AdoptedRegion> adopted = adopter->client().AdoptRegion(adopter->model(), options, After(std::chrono::seconds(10)));
    times.push_back(Milliseconds(Clock::now() - start));
    if (!adopted) Die(adopted.error().ToString());
    if (adopted->blocks.size() != blocks) Die("adopted " + std::to_string(adopted->blocks.size()) + " blocks");
  }
  std::cout << "adoption of " << blocks << " blocks: median " << Median(times) << " ms, worst "
            << *std::max_element(times.begin(), times.end()) << " ms of " << rounds << std::endl;
}

void Restart(int rounds) {
  Supervisor kvmd({"--max-entries", "1000000"});
  std::vector<ChildProcess> load;
  for (int i = 0; i < kWorkers; ++i) load.push_back(ChildProcess::Self("lifetime-load", {kvmd.socket(), std::to_string(i)}));
  for (ChildProcess& worker : load) {
    if (worker.ReadLine(std::chrono::seconds(60)) != "ready") Die("a load worker did not get ready");
  }
  // All have published what each of them looks for
  for (ChildProcess& worker : load) worker.WriteLine("go");
  const auto probe = MustStart({.socket = kvmd.socket(), .name = "probe", .blocks = 64, .block_bytes = kBlockBytes});
  SleepMs(500);
  std::vector<double> times;
  for (int round = 0; round < rounds; ++round) {
    const auto killed = Clock::now();
    kvmd.Kill();
    std::thread publisher([&] {
      while (probe->client().state() == ConnectionState::kConnected) std::this_thread::sleep_for(milliseconds(1));
      probe->Publish("probe" + std::to_string(round) + ":4", static_cast<std::uint32_t>(round % 16) * 4);
      while (!probe->Flush(std::chrono::seconds(5))) std::this_thread::sleep_for(milliseconds(1));
      times.push_back(Milliseconds(Clock::now() - killed));
    });
    std::this_thread::sleep_until(killed + milliseconds(200));
    kvmd.StartUnwatched();
    publisher.join();
    SleepMs(1000);
  }
  for (ChildProcess& worker : load) worker.WriteLine("end");
  std::uint64_t sums[5] = {};
  for (ChildProcess& worker : load) {
    const std::optional<std::string> line = worker.ReadLine(std::chrono::seconds(120));
    if (!line) Die("a load worker did not answer");
    std::istringstream numbers(*line);
    for (std::uint64_t& sum : sums) {
      std::uint64_t number = 0;
      numbers >> number;
      sum += number;
    }
  }
  std::cout << "kvmd killed " << rounds << " times under load, started anew after 200 ms: publishes accepted again after median "
            << Median(times) << " ms, worst " << *std::max_element(times.begin(), times.end()) << " ms; " << sums[0]
            << " lookups, of them failed " << sums[1] << "; " << sums[2] << " blocks imported, mismatched " << sums[3]
            << "; published blocks lost " << sums[4] << std::endl;
}

}  // namespace

TEST_CASE("Lifetime: what a restart and an adoption cost") {
  const auto rounds = static_cast<int>(FromEnvironment("KVM_LIFETIME_ROUNDS", 9));
  Adoption(static_cast<std::uint32_t>(FromEnvironment("KVM_LIFETIME_BLOCKS", 100'000)), rounds);
  Restart(rounds);
}
