#include "client/mesh/directory/node_summary.h"

#include <algorithm>
#include <boost/endian/conversion.hpp>
#include <random>

namespace kvm::mesh {

NodeSummary::NodeSummary() { Rebuild(); }

void NodeSummary::Rebuild() {
  // Workers choose keys: some may share their buckets and their fingerprint, which no size has room
  // for. The last size takes one of those for all, and what it has no room for costs hits only.
  constexpr int kSizes = 3;
  std::uint64_t buckets = CuckooFilter::BucketsFor(keys_.size());
  bool all = false;
  for (int size = 1; size <= kSizes && !all; ++size) {
    filter_ = CuckooFilter(buckets);
    all = Fill(size == kSizes);
    buckets = std::min(buckets * 2, CuckooFilter::kMaxBuckets);
  }
  std::random_device random;
  epoch_ = (static_cast<std::uint64_t>(random()) << 32 | random()) | 1;  // never 0
  sequence_ = 0;
  changes_.clear();
  fits_ = true;
}

bool NodeSummary::Fill(bool as_far_as_possible) {
  bool all = true;
  std::vector<std::uint32_t> changed;
  for (const BlockKey& key : keys_) {
    if (as_far_as_possible && filter_.Contains(key)) continue;
    changed.clear();
    all = filter_.Add(key, changed) && all;
    if (!all && !as_far_as_possible) return false;
  }
  return all;
}

void NodeSummary::Update(KeySet keys) {
  std::vector<std::uint32_t> changed;
  bool room = fits_ && CuckooFilter::BucketsFor(keys.size()) <= filter_.buckets().size();
  fits_ = false;
  for (auto key = keys_.begin(); room && key != keys_.end(); ++key)
    if (!keys.contains(*key)) filter_.Remove(*key, changed);
  for (auto key = keys.begin(); room && key != keys.end(); ++key)
    if (!keys_.contains(*key)) room = filter_.Add(*key, changed);
  keys_ = std::move(keys);
  End(std::move(changed), room);
}

void NodeSummary::Change(std::span<const KeyChange> changes) {
  // As many come as leave, mostly: the filter is built anew only if it has to grow.
  const auto come =
      static_cast<std::uint64_t>(std::count_if(changes.begin(), changes.end(), [](const KeyChange& each) { return each.here; }));
  const std::uint64_t leave = changes.size() - come;
  const std::uint64_t after = keys_.size() + come - std::min(keys_.size() + come, leave);
  bool room = fits_ && CuckooFilter::BucketsFor(after) <= filter_.buckets().size();
  fits_ = false;
  std::vector<std::uint32_t> changed;
  for (const KeyChange& each : changes) {
    if (each.here ? !keys_.insert(each.key).second : keys_.erase(each.key) == 0) continue;
    if (!room) continue;
    if (each.here) {
      room = filter_.Add(each.key, changed);
    } else {
      filter_.Remove(each.key, changed);
    }
  }
  End(std::move(changed), room);
}

void NodeSummary::Clear() {
  keys_.clear();
  Rebuild();
}

void NodeSummary::End(std::vector<std::uint32_t> changed, bool room) {
  if (!room) {
    Rebuild();
    return;
  }
  fits_ = true;
  if (changed.empty()) return;
  std::sort(changed.begin(), changed.end());
  changed.erase(std::unique(changed.begin(), changed.end()), changed.end());
  ++sequence_;
  changes_.push_back(std::move(changed));
  if (changes_.size() > kRemembered) changes_.pop_front();
}

std::shared_ptr<const SummaryImage> NodeSummary::Share(std::uint64_t epoch, std::uint64_t sequence) const {
  constexpr auto kNone = ~std::uint64_t{0};
  if (std::exchange(shared_at_, {epoch_, sequence_}) != std::pair{epoch_, sequence_}) shared_.clear();
  std::weak_ptr<const SummaryImage>& shared = shared_[Continues(epoch, sequence) ? sequence : kNone];
  std::shared_ptr<const SummaryImage> image = shared.lock();
  if (!image) shared = image = std::make_shared<const SummaryImage>(Answer(epoch, sequence));
  return image;
}

SummaryImage NodeSummary::Answer(std::uint64_t epoch, std::uint64_t sequence) const {
  SummaryImage out{epoch_, sequence_, true, filter_.buckets().size(), keys_.size(), {}};
  std::vector<std::uint32_t> changed;
  if (Continues(epoch, sequence)) {
    out.snapshot = false;
    for (std::size_t i = changes_.size() - static_cast<std::size_t>(sequence_ - sequence); i < changes_.size(); ++i)
      changed.insert(changed.end(), changes_[i].begin(), changes_[i].end());
    std::sort(changed.begin(), changed.end());
    changed.erase(std::unique(changed.begin(), changed.end()), changed.end());
    // 12 bytes a bucket against 8.
    out.snapshot = changed.size() * 12 > filter_.buckets().size() * 8;
  }
  unsigned char word[12];
  if (out.snapshot) {
    for (const std::uint64_t image : filter_.buckets()) {
      boost::endian::store_little_u64(word, image);
      out.payload.append(reinterpret_cast<const char*>(word), 8);
    }
  } else {
    for (const std::uint32_t bucket : changed) {
      boost::endian::store_little_u32(word, bucket);
      boost::endian::store_little_u64(word + 4, filter_.buckets()[bucket]);
      out.payload.append(reinterpret_cast<const char*>(word), 12);
    }
  }
  return out;
}

}  // namespace kvm::mesh
