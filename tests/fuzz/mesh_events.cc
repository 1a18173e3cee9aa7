// What workers of a node publish and describe, turned into events for routers: any keys, places and
// order. Input: a list of steps of 4 bytes. A reader that gets all events holds what is published,
// is never told of a block whose parent it does not know, and nothing is kept of what has gone.
#include <map>
#include <string>

#include "client/mesh/events/published_blocks.h"
#include "tests/fuzz/targets.h"

namespace kvm::fuzz {
namespace {

constexpr std::uint32_t kTokens = 1;
constexpr std::size_t kMostTokens = 24;  // fewer than there are keys

BlockKey KeyOf(std::uint8_t number) { return {std::uint64_t{number} % 32 + 1, number % 64u}; }

struct Run {
  mesh::TokenTable tokens{kTokens, kMostTokens};
  mesh::PublishedBlocks published;
  std::map<std::pair<std::uint64_t, mesh::Media>, int> held;
  std::uint64_t stored = 0, removed = 0;

  void Update() {
    published.Update(tokens, [this](mesh::EventBatch& batch, std::size_t more, std::size_t fewer) {
      if (more + fewer == 0 || more + fewer > mesh::PublishedBlocks::kBlocksOfBatch) Broken("a batch tells of 1 to 64 blocks");
      stored += more;
      removed += fewer;
      static_cast<void>(batch.Finish(0));
    });
    if (published.size() > stored - removed) Broken("what is published has been told");
    std::size_t told = 0;
    published.Snapshot(tokens, 4096, [&](mesh::EventBatch& batch, std::size_t more, std::size_t) {
      told += more;
      static_cast<void>(batch.Finish(0));
    });
    if (told != stored - removed) Broken("a snapshot tells of what was stored and not removed since");
    if (published.size() + published.undescribed() + published.unreachable() > 32) Broken("a hash is one block");
  }
  void Hold(const mesh::HeldBlock& block, bool here) {
    int& count = held[{block.key.lo, block.medium}];
    if (!here && count == 0) return;
    count += here ? 1 : -1;
    published.Hold({block, here});
  }
  void Put(const BlockKey& key) {
    const std::uint32_t token = 7;
    const mesh::TokenTable::PutOutcome put = tokens.Put(key, std::span(&token, 1), "");
    if (put.forgotten) published.Look(*put.forgotten);
    if (put.is_new) published.Look(key);
  }
};

}  // namespace

void MeshEventsTarget(Bytes input) {
  Run run;
  Consumer steps(input);
  while (!steps.empty()) {
    const auto step = steps.Take<std::uint8_t>(), key = steps.Take<std::uint8_t>(), parent = steps.Take<std::uint8_t>();
    const auto depth = steps.Take<std::uint8_t>();
    const mesh::HeldBlock block{KeyOf(key), KeyOf(parent).lo, depth == 255 ? ~std::uint32_t{0} : depth % 8u, 0,
                                step & 1 ? mesh::kGpuMedium : mesh::kCpuMedium};
    switch (step / 2 % 8) {
      case 0:
      case 1: run.Hold(block, true); break;
      case 2: run.Hold(block, false); break;
      case 3:
      case 4: run.Put(block.key); break;
      case 5:
      case 6: run.Update(); break;
      default:
        run.published.Forget();
        run.stored = run.removed = 0;
        run.Update();
    }
  }
  run.Update();
  for (const auto& [at, count] : run.held)
    for (int i = 0; i < count; ++i) run.published.Hold({{{at.first, 0}, 0, 0, 0, at.second}, false});
  run.Update();
  if (run.published.nodes() != 0 || run.published.size() != 0 || run.stored != run.removed) Broken("nothing is kept of what has gone");
}

std::vector<std::string> MeshEventsSeeds() {
  const auto step = [](int what, int key, int parent, int depth) {
    return std::string{static_cast<char>(what * 2), static_cast<char>(key), static_cast<char>(parent), static_cast<char>(depth)};
  };
  std::string chain, moved;
  for (int i = 0; i < 6; ++i) chain += step(3, i, 0, 0) + step(0, i, i - 1, i);
  chain += step(5, 0, 0, 0) + step(2, 2, 0, 0) + step(5, 0, 0, 0) + step(0, 2, 1, 2);
  moved = chain + step(5, 0, 0, 0) + step(2, 3, 0, 0) + step(0, 3, 4, 5) + step(5, 0, 0, 0) + step(7, 0, 0, 0);
  return {chain, moved};
}

}  // namespace kvm::fuzz
