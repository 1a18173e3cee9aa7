#include "client/mesh/events/published_blocks.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

namespace kvm::mesh {
namespace {

constexpr std::array<Media, 2> kMedia{kGpuMedium, kCpuMedium};

}  // namespace

void PublishedBlocks::Queue(std::uint32_t at) {
  if (tree_[at].queued || queue_all_) return;
  queue_.push_back(at);
  tree_[at].queued = true;
}

void PublishedBlocks::SetPlace(std::uint32_t at, const HeldBlock& block) {
  tree_.Displace(at);
  tree_.Place(at, block.key, block.parent_lo, block.depth);
}

void PublishedBlocks::Hold(const HeldChange& change) {
  const HeldBlock& block = change.block;
  const std::uint32_t at = change.here ? tree_.Ensure(block.key.lo) : tree_.Find(block.key.lo);
  if (at == kNone) return;
  const std::size_t medium = block.medium == kGpuMedium ? 0 : 1;
  if (!change.here) {
    std::uint32_t& replicas = tree_[at].replicas[medium];
    if (replicas == 0) return;
    --replicas;
    --replicas_;
    Queue(at);
    return;
  }
  const BlockNode& node = tree_[at];
  if (!node.held()) {
    const std::uint64_t parent = node.parent == kNone ? block.parent_lo : tree_[node.parent].key.lo;
    const bool same = node.placed && node.key == block.key && node.depth == block.depth && (block.depth == 0 || parent == block.parent_lo);
    if (node.moves || (!same && node.media != 0)) {
      places_.push_back({at, block});
      tree_[at].moves = true;
    } else if (!same) {
      SetPlace(at, block);
    }
  }
  ++tree_[at].replicas[medium];
  ++replicas_;
  Queue(at);
}

void PublishedBlocks::HoldNothing() noexcept {
  for (std::uint32_t at = 0; at < tree_.end(); ++at) tree_[at].replicas = {};
  replicas_ = 0;
  queue_all_ = true;
}

void PublishedBlocks::Look(const BlockKey& key) {
  const std::uint32_t at = tree_.Find(key.lo);
  if (at != kNone) Queue(at);
}

void PublishedBlocks::Forget() noexcept {
  for (std::uint32_t at = 0; at < tree_.end(); ++at) tree_[at].media = tree_[at].found = 0;
  published_ = 0;
  queue_all_ = true;
}

PublishedBlocks::Standing PublishedBlocks::StandingOf(BlockNode& node, TokenTable& tokens, Media& media) const {
  if (node.slot == TokenTable::kNone || !tokens.Is(node.slot, node.key)) node.slot = tokens.Find(node.key);
  if (node.slot != TokenTable::kNone) tokens.SetHeld(node.slot, node.held());
  if (!node.held()) return kNotHeld;
  if (node.slot == TokenTable::kNone) return kUndescribed;
  media = static_cast<Media>((node.replicas[0] > 0 ? kGpuMedium : 0) | (node.replicas[1] > 0 ? kCpuMedium : 0));
  if (node.depth != 0) {
    const BlockNode* const parent = node.parent == kNone ? nullptr : &tree_[node.parent];
    if (parent == nullptr || parent->found == 0 || parent->depth + 1 != node.depth) {
      media = 0;
    } else if ((parent->found & kGpuMedium) == 0) {
      media &= kCpuMedium;
    }
  }
  return media == 0 ? kUnreachable : kReachable;
}

bool PublishedBlocks::FindOne(BlockNode& node, TokenTable& tokens) {
  Media media = 0;
  const Standing standing = StandingOf(node, tokens, media);
  --counts_[node.standing];
  ++counts_[standing];
  node.standing = standing;
  if (node.moves) media = 0;
  return std::exchange(node.found, media) != media;
}

void PublishedBlocks::Find(TokenTable& tokens, Told& looked_at, Told& changed) {
  // What can be said of a block depends on its parent, which is not as deep.
  std::map<std::uint32_t, Told> waiting;
  for (const std::uint32_t at : queue_) waiting[tree_[at].depth].push_back(at);
  queue_.clear();
  while (!waiting.empty()) {
    const auto first = waiting.begin();
    const std::uint32_t depth = first->first;
    const Told now = std::move(first->second);
    waiting.erase(first);
    Told* deeper = nullptr;
    for (const std::uint32_t at : now) {
      tree_[at].queued = false;
      looked_at.push_back(at);
      if (!FindOne(tree_[at], tokens)) continue;
      changed.push_back(at);
      for (std::uint32_t child = tree_[at].first_child; child != kNone; child = tree_[child].next) {
        if (tree_[child].queued || tree_[child].depth != depth + 1 || depth + 1 == 0) continue;
        if (deeper == nullptr) deeper = &waiting[depth + 1];
        deeper->push_back(child);
        tree_[child].queued = true;
      }
    }
  }
}

void PublishedBlocks::TellRemoved(Media medium, const Told& gone, const Send& send) const {
  std::vector<std::uint64_t> hashes;
  EventBatch batch;
  for (std::size_t i = 0; i < gone.size(); ++i) {
    hashes.push_back(tree_[gone[i]].key.lo);
    if (hashes.size() < kBlocksOfBatch && i + 1 < gone.size()) continue;
    batch.AddRemoved(medium, hashes);
    send(batch, 0, hashes.size());
    hashes.clear();
  }
}

PublishedBlocks::Told PublishedBlocks::Link(const Told& fresh) const {
  for (std::uint32_t i = 0; i < fresh.size(); ++i) tree_[fresh[i]].position = i;
  Told after(fresh.size(), kNone);
  for (std::uint32_t i = 0; i < fresh.size(); ++i) {
    const std::uint32_t parent = tree_[fresh[i]].parent;
    if (parent != kNone && tree_[parent].position != kNone) after[tree_[parent].position] = i;
  }
  for (const std::uint32_t at : fresh) tree_[at].position = kNone;
  return after;
}

void PublishedBlocks::TellStored(Media medium, const Told& fresh, const TokenTable& tokens, std::size_t most, const Send& send) const {
  const Told after = Link(fresh);
  std::vector<bool> told(fresh.size(), false);
  EventBatch batch;
  std::vector<std::uint64_t> hashes;
  std::vector<std::uint32_t> ids;
  for (std::uint32_t first = 0; first < fresh.size(); ++first) {
    if (told[first]) continue;
    const std::string_view adapter = tokens.adapter(tree_[fresh[first]].slot);
    const std::size_t room = std::min(kBlocksOfBatch, most - batch.blocks());
    hashes.clear();
    ids.clear();
    for (std::uint32_t at = first; at != kNone && hashes.size() < room && tokens.adapter(tree_[fresh[at]].slot) == adapter;
         at = after[at]) {
      const std::span<const std::uint32_t> own = tokens.tokens(tree_[fresh[at]].slot);
      hashes.push_back(tree_[fresh[at]].key.lo);
      ids.insert(ids.end(), own.begin(), own.end());
      told[at] = true;
    }
    StoredRun run{medium, std::nullopt, hashes, ids, tokens.block_tokens(), adapter};
    if (const std::uint32_t parent = tree_[fresh[first]].parent; parent != kNone) run.parent = tree_[parent].key.lo;
    batch.AddStored(run);
    if (batch.blocks() >= most) send(batch, batch.blocks(), 0);
  }
  if (!batch.empty()) send(batch, batch.blocks(), 0);
}

void PublishedBlocks::Settle(const Told& looked_at, const Told& changed) {
  for (const std::uint32_t at : changed) {
    BlockNode& node = tree_[at];
    published_ += (node.found != 0 ? 1 : 0);
    published_ -= (node.media != 0 ? 1 : 0);
    node.media = node.found;
  }
  for (const std::uint32_t at : looked_at) {
    const BlockNode& node = tree_[at];
    if (!node.alive || node.held() || node.media != 0 || node.moves) continue;
    // Without a place it keeps no other node, whatever they say of each other.
    tree_.Displace(at);
    tree_.RemoveIfBare(at);
  }
  for (const NewPlace& place : places_) {
    SetPlace(place.at, place.block);
    tree_[place.at].moves = false;
    Queue(place.at);
  }
  places_.clear();
}

void PublishedBlocks::Round(TokenTable& tokens, const Send& send) {
  Told looked_at, changed;
  Find(tokens, looked_at, changed);
  looked_at_ += looked_at.size();
  const auto choose = [&](Media medium, bool come) {
    Told out;
    for (const std::uint32_t at : changed) {
      const bool before = (tree_[at].media & medium) != 0, now = (tree_[at].found & medium) != 0;
      if (before != now && now == come) out.push_back(at);
    }
    return out;
  };
  for (const Media medium : kMedia) {
    Told gone = choose(medium, false);
    std::reverse(gone.begin(), gone.end());
    TellRemoved(medium, gone, send);
  }
  for (const Media medium : kMedia) TellStored(medium, choose(medium, true), tokens, kBlocksOfBatch, send);
  Settle(looked_at, changed);
}

void PublishedBlocks::Update(TokenTable& tokens, const Send& send) {
  if (queue_all_) {
    queue_.clear();
    queue_.reserve(tree_.end());
    queue_all_ = false;
    for (std::uint32_t at = 0; at < tree_.end(); ++at) tree_[at].queued = false;
    for (std::uint32_t at = 0; at < tree_.end(); ++at)
      if (tree_[at].alive) Queue(at);
  }
  looked_at_ = 0;
  while (!queue_.empty()) Round(tokens, send);
}

void PublishedBlocks::Snapshot(const TokenTable& tokens, std::size_t most, const Send& send) const {
  for (const Media medium : kMedia) {
    Told all;
    for (std::uint32_t at = 0; at < tree_.end(); ++at)
      if ((tree_[at].media & medium) != 0) all.push_back(at);
    std::sort(all.begin(), all.end(), [this](std::uint32_t a, std::uint32_t b) { return tree_[a].depth < tree_[b].depth; });
    TellStored(medium, all, tokens, most, send);
  }
}

}  // namespace kvm::mesh
