#include "client/mesh/events/published_blocks.h"

#include <algorithm>
#include <array>

namespace kvm::mesh {
namespace {

constexpr std::array<Media, 2> kMedia{kGpuMedium, kCpuMedium};

}  // namespace

void PublishedBlocks::FindOne(const HeldBlock& held, TokenTable& tokens, PassCounts& counts) {
  const auto known = blocks_.find(held.key.lo);
  std::uint32_t slot = known == blocks_.end() ? TokenTable::kNone : known->second.slot;
  if (slot == TokenTable::kNone || !tokens.Is(slot, held.key)) slot = tokens.Find(held.key);
  if (slot == TokenTable::kNone) {
    counts.undescribed += undescribed_.insert(held.key.lo).second ? 1 : 0;
    return;
  }
  tokens.Held(slot);
  Media media = held.medium;
  if (held.depth != 0) {
    const auto parent = blocks_.find(held.parent_lo);
    const bool reachable = parent != blocks_.end() && parent->second.pass == pass_ && parent->second.depth + 1 == held.depth;
    if (!reachable) media = 0;
    if (reachable && (parent->second.found & kGpuMedium) == 0) media &= kCpuMedium;
  }
  if (media == 0) {
    unreachable_.insert(held.key.lo);
    return;
  }
  Block& block = known == blocks_.end() ? blocks_[held.key.lo] : known->second;
  if (block.pass != pass_) {
    block.key = held.key;
    block.parent = held.parent_lo;
    block.depth = held.depth;
    block.pass = pass_;
    block.found = 0;
  }
  block.slot = slot;
  block.found |= media;
}

PassCounts PublishedBlocks::Find(std::span<const HeldBlock> held, TokenTable& tokens) {
  PassCounts counts;
  ++pass_;
  undescribed_.clear();
  unreachable_.clear();
  order_.clear();
  order_.reserve(held.size());
  for (std::size_t i = 0; i < held.size(); ++i) order_.push_back(std::uint64_t{held[i].depth} << 32 | i);
  // What can be said of a block depends on its parent, with all of the parent's replicas.
  std::sort(order_.begin(), order_.end());
  blocks_.reserve(std::max(blocks_.size(), held.size()));
  tokens.BeginPass();
  for (const std::uint64_t each : order_) FindOne(held[each & 0xffff'ffff], tokens, counts);
  for (const std::uint64_t hash : unreachable_) {
    const auto found = blocks_.find(hash);
    counts.unreachable += found == blocks_.end() || found->second.pass != pass_ ? 1 : 0;
  }
  return counts;
}

void PublishedBlocks::TellRemoved(Media medium, const Told& gone, const Send& send) {
  std::vector<std::uint64_t> hashes;
  EventBatch batch;
  for (std::size_t i = 0; i < gone.size(); ++i) {
    hashes.push_back(gone[i]->key.lo);
    if (hashes.size() < kBlocksOfBatch && i + 1 < gone.size()) continue;
    batch.AddRemoved(medium, hashes);
    send(batch, 0, hashes.size());
    hashes.clear();
  }
}

std::vector<std::uint32_t> PublishedBlocks::Link(const Told& fresh) const {
  for (std::uint32_t i = 0; i < fresh.size(); ++i) fresh[i]->position = i;
  std::vector<std::uint32_t> after(fresh.size(), kNotTold);
  for (std::uint32_t i = 0; i < fresh.size(); ++i) {
    if (fresh[i]->depth == 0) continue;
    const auto parent = blocks_.find(fresh[i]->parent);
    if (parent != blocks_.end() && parent->second.position != kNotTold) after[parent->second.position] = i;
  }
  for (const Block* block : fresh) block->position = kNotTold;
  return after;
}

void PublishedBlocks::TellStored(Media medium, const Told& fresh, const TokenTable& tokens, std::size_t most, const Send& send) const {
  std::vector<std::uint32_t> after = Link(fresh);
  std::vector<bool> told(fresh.size(), false);
  EventBatch batch;
  std::vector<std::uint64_t> hashes;
  std::vector<std::uint32_t> ids;
  for (std::uint32_t first = 0; first < fresh.size(); ++first) {
    if (told[first]) continue;
    const std::string_view adapter = tokens.adapter(fresh[first]->slot);
    const std::size_t room = std::min(kBlocksOfBatch, most - batch.blocks());
    hashes.clear();
    ids.clear();
    for (std::uint32_t at = first; at != kNotTold && hashes.size() < room && tokens.adapter(fresh[at]->slot) == adapter; at = after[at]) {
      const std::span<const std::uint32_t> own = tokens.tokens(fresh[at]->slot);
      hashes.push_back(fresh[at]->key.lo);
      ids.insert(ids.end(), own.begin(), own.end());
      told[at] = true;
    }
    StoredRun run{medium, std::nullopt, hashes, ids, tokens.block_tokens(), adapter};
    if (fresh[first]->depth != 0) run.parent = fresh[first]->parent;
    batch.AddStored(run);
    if (batch.blocks() >= most) send(batch, batch.blocks(), 0);
  }
  if (!batch.empty()) send(batch, batch.blocks(), 0);
}

PassCounts PublishedBlocks::Update(std::span<const HeldBlock> held, TokenTable& tokens, const Send& send) {
  const PassCounts counts = Find(held, tokens);
  const auto deeper = [](const Block* a, const Block* b) { return a->depth > b->depth; };
  for (const Media medium : kMedia) {
    Told gone;
    for (const auto& [hash, block] : blocks_)
      if ((block.media & medium) != 0 && !FoundIn(block, medium)) gone.push_back(&block);
    std::sort(gone.begin(), gone.end(), deeper);
    TellRemoved(medium, gone, send);
  }
  for (const Media medium : kMedia) {
    Told fresh;
    for (const auto& [hash, block] : blocks_)
      if ((block.media & medium) == 0 && FoundIn(block, medium)) fresh.push_back(&block);
    std::sort(fresh.begin(), fresh.end(), [](const Block* a, const Block* b) { return a->depth < b->depth; });
    TellStored(medium, fresh, tokens, kBlocksOfBatch, send);
  }
  for (auto& [hash, block] : blocks_) block.media = block.pass == pass_ ? block.found : Media{0};
  boost::unordered::erase_if(blocks_, [](const auto& each) { return each.second.media == 0; });
  return counts;
}

void PublishedBlocks::Snapshot(const TokenTable& tokens, std::size_t most, const Send& send) const {
  for (const Media medium : kMedia) {
    Told all;
    for (const auto& [hash, block] : blocks_)
      if ((block.media & medium) != 0) all.push_back(&block);
    std::sort(all.begin(), all.end(), [](const Block* a, const Block* b) { return a->depth < b->depth; });
    TellStored(medium, all, tokens, most, send);
  }
}

}  // namespace kvm::mesh
