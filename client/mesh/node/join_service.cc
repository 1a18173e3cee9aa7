#include "client/mesh/node/join_service.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <tuple>

#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kWorkerIdleTimeout{600'000};
constexpr milliseconds kAnswerTimeout{1000};
constexpr std::uint32_t kMaxJoinMs = 600'000;
constexpr std::size_t kMaxSources = 3;  // peers that one request asks
constexpr milliseconds kIndexTimeout{500};
constexpr milliseconds kLook{2};  // pause between two looks at what kvmd has indexed

// The answer has to reach the worker before its own deadline.
Time AnswerBy(std::uint32_t within_ms) {
  const milliseconds within(std::min(within_ms, kMaxJoinMs));
  return steady_clock::now() + within - std::min(milliseconds(50), within / 10);
}

}  // namespace

Awaitable<void> JoinService::Serve(std::shared_ptr<Channel> channel) {
  for (;;) {
    Result<Received> received = co_await channel->Receive(steady_clock::now() + kWorkerIdleTimeout);
    kvmmesh::LocalMessage message, answer;
    if (!received || received->payload_bytes != 0 || !message.ParseFromString(received->message)) break;
    if (message.has_join()) {
      *answer.mutable_joined() = co_await Join(message.join(), AnswerBy(message.join().within_ms()));
    } else if (message.has_status_query()) {
      *answer.mutable_status() = Describe();
    } else {
      break;
    }
    const std::string bytes = answer.SerializeAsString();
    Status sent = co_await channel->Send(bytes, {}, steady_clock::now() + kAnswerTimeout);
    if (!sent) break;
  }
  channel->Close();
}

kvmmesh::Status JoinService::Describe() const {
  kvmmesh::Status out;
  out.set_node(node_.config.node);
  out.set_domain(node_.client->domain());
  out.set_keys(node_.summary.keys());
  out.set_served_blocks(node_.counters.served_blocks);
  out.set_served_bytes(node_.counters.served_bytes);
  out.set_joins(node_.counters.joins);
  out.set_joined_blocks(node_.counters.joined_blocks);
  for (const auto& peer : peers_) peer->Describe(*out.add_peers());
  return out;
}

std::size_t JoinService::Local(std::span<const BlockKey> keys, std::size_t known) const {
  // The worker may find blocks in GPU memory, which this process can't.
  const std::size_t first = std::min(known, keys.size());
  return first + node_.client->Find(keys.subspan(first)).size();
}

Awaitable<void> JoinService::Pause(milliseconds time) {
  asio::steady_timer timer(node_.io, time);
  boost::system::error_code ignored;
  co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

Awaitable<kvmmesh::Joined> JoinService::Join(kvmmesh::Join join, Time deadline) {
  ++node_.counters.joins;
  kvmmesh::Joined out;
  const Result<std::vector<BlockKey>> keys = DecodeKeys(join.keys());
  const Result<BlockShape> shape = BlockShape::FromMessage(join.shape(), node_.config.max_block_bytes);
  if (!keys || !shape) {
    out.set_reason(keys ? shape.error().message : keys.error().message);
    co_return out;
  }
  // Another request may be fetching the same blocks.
  std::size_t local = Local(*keys, join.known());
  while (local < keys->size() && fetching_.contains((*keys)[local]) && steady_clock::now() < deadline) {
    co_await Pause(kLook);
    local = Local(*keys, join.known());
  }
  std::string reason;
  if (local < keys->size() && steady_clock::now() < deadline) {
    const BlockKey first = (*keys)[local];
    const bool alone = fetching_.insert(first).second;
    const std::size_t fetched = alone ? co_await FetchFromPeers(*shape, *keys, join, deadline, reason) : 0;
    if (alone) fetching_.erase(first);
    // kvmd indexes what was published in a moment.
    const std::size_t expected = local + fetched;
    local = Local(*keys, join.known());
    const Time indexed_by = std::min(deadline, steady_clock::now() + kIndexTimeout);
    while (local < expected && steady_clock::now() < indexed_by) {
      co_await Pause(kLook);
      local = Local(*keys, join.known());
    }
    out.set_fetched(static_cast<std::uint32_t>(fetched));
    node_.counters.joined_blocks += fetched;
  }
  out.set_local(static_cast<std::uint32_t>(local));
  if (local < keys->size()) out.set_reason(reason);
  co_return out;
}

Peer* JoinService::Best(std::span<const BlockKey> keys, std::size_t local, const kvmmesh::Join& join, const std::vector<Peer*>& asked,
                        std::size_t& depth) const {
  Peer* best = nullptr;
  depth = local;
  for (const auto& peer : peers_) {
    if (std::find(asked.begin(), asked.end(), peer.get()) != asked.end()) continue;
    // The worker was told that the blocks are there; the peer's own answer decides.
    if (peer->name() == join.source_hint() && asked.empty()) {
      depth = keys.size();
      return peer.get();
    }
    const std::size_t reaches = peer->MatchedDepth(keys, local);
    if (reaches == local) continue;
    const auto rank = [](std::size_t matched, const Peer& of) { return std::tuple(matched, of.bytes_per_s() / (of.in_flight() + 1)); };
    if (best == nullptr || rank(reaches, *peer) > rank(depth, *best)) {
      best = peer.get();
      depth = reaches;
    }
  }
  return best;
}

// Errors: those of MeshMemory::Get; kNotFound: the model is not known.
Awaitable<Result<std::shared_ptr<SlotPool>>> JoinService::Pool(const BlockShape& shape) {
  auto model = node_.models.find(shape.fingerprint);
  if (model == node_.models.end()) {
    // A worker may have declared it since the last scan.
    static_cast<void>(co_await scanner_.Once());
    model = node_.models.find(shape.fingerprint);
  }
  if (model == node_.models.end()) co_return MakeError(Errc::kNotFound, "no worker of this node has declared the model");
  co_return co_await node_.landing.Get(model->second, shape);
}

Awaitable<std::size_t> JoinService::FetchFromPeers(const BlockShape& shape, std::span<const BlockKey> keys, const kvmmesh::Join& join,
                                                   Time deadline, std::string& reason) {
  std::shared_ptr<SlotPool> pool;
  const std::size_t local = Local(keys, join.known());
  std::size_t have = local;
  std::vector<Peer*> asked;
  reason = "no peer seems to have more";
  while (have < keys.size() && asked.size() < kMaxSources && steady_clock::now() < deadline) {
    std::size_t depth = have;
    Peer* const peer = Best(keys, have, join, asked, depth);
    if (peer == nullptr || depth < join.min_blocks()) break;
    asked.push_back(peer);
    if (!pool) {
      Result<std::shared_ptr<SlotPool>> made = co_await Pool(shape);
      if (!made) {
        reason = made.error().message;
        break;
      }
      pool = *made;
    }
    // Blocks of this prefix that are in the pool are not to be replaced by later ones of it.
    const std::size_t kept = pool->Touch(keys.first(have));
    const std::size_t room = pool->size() - std::min(pool->size(), pool->taken() + kept);
    if (room == 0) {
      reason = "the pool is too small for the prefix";
      break;
    }
    FetchJob job{shape,
                 keys.subspan(have, std::min(depth - have, room)),
                 have == 0 ? BlockKey() : keys[have - 1],
                 static_cast<std::uint32_t>(have),
                 pool,
                 deadline};
    const FetchOutcome outcome = co_await peer->Fetch(job);
    have += outcome.fetched;
    reason = outcome.reason.empty() ? "no peer seems to have more" : peer->name() + ": " + outcome.reason;
    pool->Touch(keys.first(have));
  }
  co_return have - local;
}

}  // namespace kvm::mesh
