#include "client/mesh/events/event_feed.h"

#include <algorithm>
#include <span>
#include <utility>

#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {

EventFeed::EventFeed(FeedOptions options, std::uint64_t first_sequence, Clock clock)
    : options_(std::move(options)), clock_(std::move(clock)), next_(first_sequence), ring_(options_.ring_batches, options_.ring_bytes) {}

double EventFeed::Now() const { return std::chrono::duration<double>(clock_().time_since_epoch()).count(); }

void EventFeed::Describe(BlockDescription description) { descriptions_.push_back(std::move(description)); }

void EventFeed::Use(const HeldChanges& changes) {
  if (changes.all)
    for (auto& [fingerprint, variant] : variants_) variant.published.HoldNothing();
  NameTopics(changes.models);
  for (const HeldChange& change : changes.changes) {
    Variant* const variant = change.block.model < by_model_.size() ? by_model_[change.block.model] : nullptr;
    if (variant != nullptr) variant->published.Hold(change);
  }
}

EventFeed::Variants::iterator EventFeed::VariantOf(const Fingerprint& fingerprint, std::uint32_t block_tokens) {
  const auto known = variants_.find(fingerprint);
  if (known != variants_.end()) return known->second.tokens.block_tokens() == block_tokens ? known : variants_.end();
  if (variants_.size() == kMaxModels || block_tokens == 0 || block_tokens > kMaxBlockTokens) return variants_.end();
  return variants_.try_emplace(fingerprint, block_tokens, options_.most_blocks).first;
}

void EventFeed::TakeDescriptions() {
  for (const BlockDescription& description : std::exchange(descriptions_, {})) {
    const auto variant = VariantOf(description.fingerprint, description.block_tokens);
    const std::size_t block_tokens = description.block_tokens;
    if (variant == variants_.end() || description.tokens.size() != description.keys.size() * block_tokens) {
      counts_.refused += description.keys.size();
      continue;
    }
    for (std::size_t i = 0; i < description.keys.size(); ++i) {
      const auto tokens = std::span(description.tokens).subspan(i * block_tokens, block_tokens);
      const TokenTable::PutOutcome put = variant->second.tokens.Put(description.keys[i], tokens, description.adapter);
      if (!put) ++counts_.refused;
      if (put.forgotten) variant->second.published.Look(*put.forgotten);
      if (put.is_new) variant->second.published.Look(description.keys[i]);
    }
  }
}

void EventFeed::NameTopics(const std::vector<HeldModel>& models) {
  by_model_.assign(models.size(), nullptr);
  for (std::size_t i = 0; i < models.size(); ++i) {
    const HeldModel& model = models[i];
    if (!options_.model.empty() && model.model_id != options_.model) continue;
    const auto variant = VariantOf(model.fingerprint, model.block_tokens);
    if (variant == variants_.end()) continue;
    Topic& topic = topics_[model.model_id];
    if (!topic.name) topic.name = std::make_shared<const std::string>("kv@" + options_.node + "@" + model.model_id);
    variant->second.topic = &topic;
    by_model_[i] = &variant->second;
  }
}

void EventFeed::Publish(const Topic& topic, EventBatch& batch, const Send& send) {
  PublishedBatch out{next_, topic.name, std::make_shared<const std::string>(batch.Finish(Now()))};
  ring_.Add(out);
  // Not again, even if it is not sent: then it is a gap, which subscribers notice.
  ++next_;
  ++counts_.batches;
  send(out);
}

void EventFeed::PassVariant(const Fingerprint& fingerprint, Variant& variant, const Send& send) {
  Topic& topic = *variant.topic;
  if (topic.teller != nullptr && *topic.teller != fingerprint) {
    counts_.other_variant += variant.published.replicas();
    return;
  }
  if (!topic.cleared) {
    EventBatch cleared;
    cleared.AddCleared();
    Publish(topic, cleared, send);
    topic.cleared = true;
  }
  variant.published.Update(variant.tokens, [&](EventBatch& batch, std::size_t stored, std::size_t removed) {
    Publish(topic, batch, send);
    counts_.stored += stored;
    counts_.removed += removed;
  });
  counts_.undescribed += variant.published.undescribed();
  counts_.unreachable += variant.published.unreachable();
  topic.teller = variant.published.size() == 0 ? nullptr : &fingerprint;
}

void EventFeed::ForgetAll() noexcept {
  for (auto& [fingerprint, variant] : variants_) variant.published.Forget();
  for (auto& [name, topic] : topics_) topic.cleared = false;
}

void EventFeed::Pass(const Send& send) {
  counts_.blocks = counts_.described = counts_.undescribed = counts_.unreachable = counts_.other_variant = counts_.forgotten = 0;
  try {
    TakeDescriptions();
    for (auto& [fingerprint, variant] : variants_) {
      if (variant.topic == nullptr) continue;
      PassVariant(fingerprint, variant, send);
      counts_.blocks += variant.published.size();
      counts_.described += variant.tokens.size();
      counts_.forgotten += variant.tokens.forgotten();
    }
  } catch (...) {
    ForgetAll();
    throw;
  }
}

void EventFeed::Heartbeat(const Send& send) {
  for (auto& [model, topic] : topics_) {
    EventBatch nothing;
    Publish(topic, nothing, send);
  }
}

std::vector<PublishedBatch> EventFeed::Replay(std::uint64_t sequence) {
  if (sequence >= next_) return {};
  if (ring_.Has(sequence)) {
    ++counts_.replays;
    return ring_.From(sequence);
  }
  ++counts_.snapshots;
  return Snapshot(sequence);
}

std::vector<PublishedBatch> EventFeed::Snapshot(std::uint64_t sequence) {
  std::vector<PublishedBatch> out;
  // There is a number for each batch, since the numbers asked for are more than the ring has.
  const std::uint64_t numbers = next_ - sequence;
  const std::size_t most = std::max<std::size_t>(kBlocksOfSnapshotBatch, 4 * counts_.blocks / numbers);
  for (const auto& [fingerprint, variant] : variants_) {
    if (variant.topic == nullptr || !variant.topic->cleared) continue;
    if (variant.topic->teller != nullptr && *variant.topic->teller != fingerprint) continue;
    EventBatch cleared;
    cleared.AddCleared();
    const auto add = [&](EventBatch& batch) {
      out.push_back({0, variant.topic->name, std::make_shared<const std::string>(batch.Finish(Now()))});
    };
    add(cleared);
    variant.published.Snapshot(variant.tokens, most, [&](EventBatch& batch, std::size_t, std::size_t) { add(batch); });
  }
  for (std::size_t i = 0; i < out.size(); ++i) out[i].sequence = next_ - out.size() + i;
  return out;
}

}  // namespace kvm::mesh
