#include "tests/support/worker/busy_worker.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <iostream>

#include "tests/support/data/random.h"
#include "tests/support/process/child_main.h"
#include "tests/support/worker/worker.h"

namespace kvm::test {
namespace {

constexpr std::uint32_t kBusyBlocks = 48;
constexpr std::uint32_t kRecyclerBlocks = 32;
constexpr std::size_t kRecyclerKeyCount = 128;

bool InputClosed() {
  pollfd wait{STDIN_FILENO, POLLIN, 0};
  return ::poll(&wait, 1, 0) > 0;  // no process writes to it
}

std::unique_ptr<Worker> MustStart(const WorkerOptions& options) {
  Result<std::unique_ptr<Worker>> worker = Worker::Start(options);
  if (worker) return std::move(*worker);
  std::cerr << options.name << ": " << worker.error().ToString() << std::endl;
  return nullptr;
}

std::string RandomPrompt(Random& random) {
  std::string prompt = "shared" + std::to_string(random.Below(6)) + ":" + std::to_string(random.Between(1, 12));
  if (random.OneIn(2)) prompt += ",tail" + std::to_string(random.Below(20)) + ":" + std::to_string(random.Between(1, 6));
  return prompt;
}

// One step; false if wrong bytes were found.
bool Step(Worker& worker, Random& random) {
  const std::string prompt = RandomPrompt(random);
  const auto count = static_cast<std::uint32_t>(worker.Keys(prompt).size());
  const auto first = static_cast<std::uint32_t>(random.Below(kBusyBlocks - count));
  if (random.OneIn(2)) {
    worker.Publish(prompt, first);
    if (random.OneIn(4)) static_cast<void>(worker.Flush());
    return true;
  }
  return worker.FindAndImport(prompt, first).wrong == 0;
}

int BusyMain(const std::vector<std::string>& arguments) {
  WorkerOptions options;
  options.socket = arguments.at(0);
  options.blocks = kBusyBlocks;
  options.start_offline = true;
  Random random(std::stoull(arguments.at(2)));
  for (int life = 0; !InputClosed(); ++life) {
    options.name = arguments.at(1) + "-" + std::to_string(life);
    options.adopt = arguments.at(3) == "adopt" && life == 0;
    const std::unique_ptr<Worker> worker = MustStart(options);
    if (!worker) return 1;
    for (const AdoptedBlock& adopted : worker->adopted()) {
      if (worker->Holds(adopted.block, adopted.key)) continue;
      std::cerr << options.name << ": an adopted block has wrong bytes" << std::endl;
      return kBusyWorkerFoundWrongBytes;
    }
    if (options.adopt) std::cout << worker->adopted().size() << std::endl;
    for (std::uint64_t steps = random.Between(1, 300); steps > 0 && !InputClosed(); --steps) {
      if (Step(*worker, random)) continue;
      std::cerr << options.name << ": an import called valid has wrong bytes" << std::endl;
      return kBusyWorkerFoundWrongBytes;
    }
  }
  return 0;
}

int RecyclerMain(const std::vector<std::string>& arguments) {
  const std::unique_ptr<Worker> worker =
      MustStart({.socket = arguments.at(0), .name = arguments.at(1), .blocks = kRecyclerBlocks, .block_bytes = kRecyclerBlockBytes});
  if (!worker) return 1;
  const std::vector<BlockKey> keys = RecyclerKeys(arguments.at(1));
  std::cout << "ok" << std::endl;
  Random random(1);
  while (!InputClosed()) {
    const std::uint32_t block[] = {static_cast<std::uint32_t>(random.Below(kRecyclerBlocks))};
    const BlockKey& key = random.Pick(keys);
    const BlockKey parent{};
    worker->PublishKeys(std::span(&key, 1), std::span(&parent, 1), block, 0);
  }
  return 0;
}

int ImporterMain(const std::vector<std::string>& arguments) {
  const std::unique_ptr<Worker> worker =
      MustStart({.socket = arguments.at(0), .name = arguments.at(1), .blocks = 4, .block_bytes = kRecyclerBlockBytes});
  if (!worker) return 1;
  std::vector<BlockKey> keys;
  for (std::size_t i = 3; i < arguments.size(); ++i) {
    const std::vector<BlockKey> more = RecyclerKeys(arguments[i]);
    keys.insert(keys.end(), more.begin(), more.end());
  }
  Random random(7);
  std::size_t valid = 0, stale = 0, wrong = 0;
  const int rounds = std::stoi(arguments.at(2));
  const Deadline deadline = After(std::chrono::seconds(40));
  for (int round = 0; round < rounds && std::chrono::steady_clock::now() < deadline;) {
    const BlockKey& key = random.Pick(keys);
    const Match match = worker->client().Find(std::span(&key, 1));
    if (match.empty()) continue;
    ++round;
    // An engine does something between finding and importing; the owners use that time.
    const Deadline resume = std::chrono::steady_clock::now() + std::chrono::microseconds(random.Below(100));
    while (std::chrono::steady_clock::now() < resume) continue;
    const ImportCheck check = worker->Import(match, std::span(&key, 1), 0);
    valid += check.valid;
    stale += check.failed.size();
    wrong += check.wrong;
  }
  std::cout << valid << " " << stale << " " << wrong << std::endl;
  return 0;
}

const ChildMain kBusy("busy", BusyMain);
const ChildMain kRecycler("recycler", RecyclerMain);
const ChildMain kImporter("stress-importer", ImporterMain);

}  // namespace

std::vector<BlockKey> RecyclerKeys(const std::string& name) {
  std::vector<BlockKey> keys;
  const ExtraKey salt{ExtraKey::Kind::kOther, name};
  KeyChain chain(SmallSpec().ComputeFingerprint(), {}, std::span(&salt, 1));
  for (std::size_t i = 0; i < kRecyclerKeyCount; ++i) keys.push_back(chain.Next({}));
  return keys;
}

ChildProcess StartBusyWorker(const std::string& socket, const std::string& name, std::uint64_t seed, bool adopt) {
  return ChildProcess::Self("busy", {socket, name, std::to_string(seed), adopt ? "adopt" : "allocate"});
}

ChildProcess StartRecycler(const std::string& socket, const std::string& name) {
  ChildProcess process = ChildProcess::Self("recycler", {socket, name});
  static_cast<void>(process.ReadLine(std::chrono::seconds(30)));
  return process;
}

ChildProcess StartStressImporter(const std::string& socket, const std::string& name, const std::vector<std::string>& recyclers,
                                 int rounds) {
  std::vector<std::string> arguments{socket, name, std::to_string(rounds)};
  arguments.insert(arguments.end(), recyclers.begin(), recyclers.end());
  return ChildProcess::Self("stress-importer", arguments);
}

BusyCrew::BusyCrew(std::string socket, std::uint64_t seed, std::size_t workers, Successor successor)
    : socket_(std::move(socket)), seed_(seed), successor_(successor) {
  for (std::size_t worker = 0; worker < workers; ++worker) workers_.push_back(Started(worker));
}

ChildProcess BusyCrew::Started(std::size_t worker) {
  ++started_;
  const bool adopter = successor_ == Successor::kAdopter;
  return StartBusyWorker(socket_, "busy-" + std::to_string(adopter ? worker : started_), seed_ + started_, adopter);
}

pid_t BusyCrew::Kill(std::size_t worker) {
  const pid_t pid = workers_[worker].pid();
  workers_[worker].Kill();
  well_ = well_ && workers_[worker].Wait(std::chrono::milliseconds(0))->code != kBusyWorkerFoundWrongBytes;
  return pid;
}

void BusyCrew::Replace(std::size_t worker) { workers_[worker] = Started(worker); }

bool BusyCrew::EndWell() {
  for (ChildProcess& worker : workers_) {
    const std::optional<ProcessEnd> end = Finish(worker);
    well_ = well_ && end && end->clean();
  }
  return well_;
}

std::optional<ProcessEnd> Finish(ChildProcess& process) {
  process.CloseInput();
  return process.Wait(std::chrono::seconds(30));
}

}  // namespace kvm::test
