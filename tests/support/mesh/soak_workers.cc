#include "tests/support/mesh/soak_workers.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <regex>
#include <stdexcept>
#include <thread>

#include "kvclient/join.h"
#include "tests/support/data/random.h"
#include "tests/support/process/child_main.h"
#include "tests/support/worker/worker.h"

namespace kvm::test {
namespace {

using std::chrono::milliseconds;

constexpr std::uint32_t kPoolBlocks = 1024;  // of a publisher

bool InputClosed() {
  pollfd wait{STDIN_FILENO, POLLIN, 0};
  return ::poll(&wait, 1, 0) > 0;  // no process writes to it
}

void Pause(std::uint64_t ms) { std::this_thread::sleep_for(milliseconds(ms)); }

// The same in each process.
std::string Prompt(std::size_t node, std::size_t publisher, std::uint64_t number) {
  const std::uint64_t blocks = 8 + Mix(number, publisher) % (kSoakMostBlocks - 7);
  return SoakNodeName(node) + std::to_string(publisher) + "n" + std::to_string(number) + ":" + std::to_string(blocks);
}

// A worker of a name that none had before it.
std::unique_ptr<Worker> MustStart(const std::vector<std::string>& arguments, const std::string& kind, std::uint32_t blocks) {
  WorkerOptions options;
  options.socket = arguments.at(0);
  options.name = kind + "-" + std::to_string(::getpid());
  options.blocks = blocks;
  options.block_bytes = kSoakBlockBytes;
  options.start_offline = true;
  Result<std::unique_ptr<Worker>> worker = Worker::Start(options);
  if (worker) return std::move(*worker);
  std::cerr << options.name << ": " << worker.error().ToString() << std::endl;
  return nullptr;
}

// Takes blocks at random from whatever they hold: retracts them, overwrites them, or publishes
// something else in them.
std::uint64_t Storm(Worker& worker, Random& random, std::uint64_t stray) {
  const std::uint64_t blocks = random.Below(256);
  const std::vector<BlockKey> keys = worker.Keys("stray" + std::to_string(stray) + ":256");
  const BlockKey parent{};
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint32_t block[] = {static_cast<std::uint32_t>(random.Below(kPoolBlocks))};
    switch (random.Below(3)) {
      case 0: worker.region().Retract(block[0]); break;
      case 1:
        worker.region().Retract(block[0]);
        worker.Fill(block[0], keys[i]);
        break;
      default: worker.PublishKeys(std::span(keys).subspan(i, 1), std::span(&parent, 1), block, 0); break;
    }
  }
  return blocks;
}

int PublisherMain(const std::vector<std::string>& arguments) {
  const SoakBoard board(arguments.at(2));
  const std::size_t node = std::stoul(arguments.at(3)), publisher = std::stoul(arguments.at(4));
  Random random(std::stoull(arguments.at(5)));
  const std::unique_ptr<Worker> worker = MustStart(arguments, "publisher", kPoolBlocks);
  if (!worker) return 1;
  std::atomic<std::uint64_t>& newest = board->published[node][publisher];
  while (!InputClosed()) {
    const std::uint64_t last = newest.load();
    // Some of them again, in other blocks.
    const bool again = last > kSoakAges[1] && random.OneIn(4);
    const std::uint64_t number = again ? last - random.Below(kSoakAges[1]) : last + 1;
    const std::string prompt = Prompt(node, publisher, number);
    const auto first = static_cast<std::uint32_t>(random.Below(kPoolBlocks - kSoakMostBlocks + 1));
    board->published_blocks += worker->Publish(prompt, first).readable;
    if (random.OneIn(4)) static_cast<void>(worker->Flush());
    if (!again) newest.store(number);
    if (random.OneIn(3)) board->stormed_blocks += Storm(*worker, random, random.Next());
    Pause(random.Between(2, 40));
  }
  return 0;
}

int JoinerMain(const std::vector<std::string>& arguments) {
  const SoakBoard board(arguments.at(2));
  const std::size_t source = std::stoul(arguments.at(3));
  Random random(std::stoull(arguments.at(4)));
  const std::unique_ptr<Worker> worker = MustStart(arguments, "joiner", kSoakMostBlocks);
  if (!worker) return 1;
  std::map<std::string, std::uint64_t> reasons;
  const std::regex numbers("[0-9]+");
  while (!InputClosed()) {
    const std::size_t publisher = random.Below(kSoakPublishers), age = random.Below(kSoakAges.size());
    const std::uint64_t newest = board->published[source][publisher].load();
    if (newest == 0) {
      Pause(5);
      continue;
    }
    const std::uint64_t number = newest - std::min(newest - 1, random.Below(kSoakAges[age]));
    const std::vector<BlockKey> keys = worker->Keys(Prompt(source, publisher, number));
    const std::size_t here = worker->client().Find(keys).size();
    JoinOptions options;
    options.mesh_socket = arguments.at(1);
    options.deadline = After(milliseconds(random.Between(50, 2000)));
    if (random.OneIn(2)) options.source_hint = SoakNodeName(source);
    const JoinOutcome joined = worker->client().JoinCache(worker->region(), keys, options);
    const ImportCheck check = worker->Import(worker->client().Find(keys), keys, 0);
    ++board->joins;
    board->fetched += joined.fetched;
    board->fetched_of_age[age] += joined.fetched;
    board->compared += std::min(joined.fetched, check.valid - std::min(check.valid, here));
    board->wrong += check.wrong;
    board->stale += check.failed.size();
    ++reasons[std::regex_replace(joined.reason, numbers, "N")];
    if (joined.fetched == 0) Pause(2);
  }
  for (const auto& [reason, count] : reasons) std::cout << count << " " << (reason.empty() ? "all are here" : reason) << "\n";
  std::cout << std::flush;
  return 0;
}

const ChildMain kPublisher("mesh-soak-publisher", PublisherMain);
const ChildMain kJoiner("mesh-soak-joiner", JoinerMain);

}  // namespace

// In a worker's process there is no test that could fail.
SoakBoard::SoakBoard(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!file || ::ftruncate(file.get(), sizeof(SoakCounts)) != 0) throw std::runtime_error(path + " can't be made");
  void* const memory = ::mmap(nullptr, sizeof(SoakCounts), PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (memory == MAP_FAILED) throw std::runtime_error(path + " can't be mapped");
  counts_ = static_cast<SoakCounts*>(memory);
}

SoakBoard::~SoakBoard() { ::munmap(counts_, sizeof(SoakCounts)); }

ChildProcess StartSoakPublisher(const SoakPlace& place, std::size_t publisher, std::uint64_t seed) {
  return ChildProcess::Self(
      "mesh-soak-publisher",
      {place.kvmd_socket, place.mesh_socket, place.board, std::to_string(place.node), std::to_string(publisher), std::to_string(seed)},
      place.log);
}

ChildProcess StartSoakJoiner(const SoakPlace& place, std::size_t source_node, std::uint64_t seed) {
  return ChildProcess::Self("mesh-soak-joiner",
                            {place.kvmd_socket, place.mesh_socket, place.board, std::to_string(source_node), std::to_string(seed)},
                            place.log);
}

std::string SoakNodeName(std::size_t node) { return std::string(1, static_cast<char>('a' + node)); }

}  // namespace kvm::test
