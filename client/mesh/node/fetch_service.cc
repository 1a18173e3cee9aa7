#include "client/mesh/node/fetch_service.h"

#include <algorithm>

#include "client/mesh/node/staging_batch.h"
#include "client/mesh/threads/on_thread.h"
#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kHelloTimeout{5000};
constexpr milliseconds kSendTimeout{60'000};
constexpr milliseconds kSendStall{10'000};
constexpr milliseconds kIdleTimeout{120'000};
constexpr std::uint32_t kMaxWithinMs = 600'000;
// Blocks that are copied before the first one is sent: enough to make up for the change of threads.
constexpr std::uint64_t kBatchBytes = std::uint64_t{8} << 20;
constexpr std::size_t kMaxBatchBlocks = 256;

}  // namespace

Awaitable<void> FetchService::Serve() {
  Status good;
  // A channel whose certificates are out of date, or have been replaced, takes no further request.
  while (good && channel_->current()) {
    Result<Received> received = co_await channel_->Receive(steady_clock::now() + kIdleTimeout);
    kvmmesh::PeerMessage message;
    if (!received || received->payload_bytes != 0 || !message.ParseFromString(received->message)) break;
    // Its certificates may have been replaced while it waited.
    if (!channel_->current()) break;
    good = co_await Answer(std::move(message));
  }
}

Awaitable<Status> FetchService::Greet() {
  const Time deadline = steady_clock::now() + kHelloTimeout;
  Status secured = co_await channel_->Handshake(deadline);
  if (!secured) co_return secured;
  Result<Received> received = co_await channel_->Receive(deadline);
  if (!received) co_return received.error();
  kvmmesh::PeerMessage message;
  if (received->payload_bytes != 0 || !message.ParseFromString(received->message) || !message.has_hello())
    co_return MakeError(Errc::kProtocol, "no hello");
  // The domain is not known before kvmd has been connected to.
  const std::string domain = node_.client->domain();
  const bool fits = message.hello().version() == kMeshVersion && !domain.empty() && message.hello().domain() == domain;
  if (!domain.empty() && !channel_->IsNode(domain, message.hello().node())) {
    co_return MakeError(Errc::kPermissionDenied,
                        "the peer's certificate is not of node " + message.hello().node() + " of domain " + domain);
  }
  kvmmesh::PeerMessage answer;
  answer.mutable_hello()->set_version(kMeshVersion);
  answer.mutable_hello()->set_node(node_.config.node);
  answer.mutable_hello()->set_domain(domain);
  if (fits) answer.mutable_hello()->set_bulk(channel_->Offer(message.hello().bulk()));
  const std::string bytes = answer.SerializeAsString();
  Status sent = co_await channel_->Send(bytes, {}, deadline);
  if (sent && !fits) co_return MakeError(Errc::kPermissionDenied, "another version or domain");
  if (!sent) co_return sent;
  co_return co_await channel_->Use(message.hello().bulk(), deadline);
}

Awaitable<Status> FetchService::Answer(kvmmesh::PeerMessage message) {
  if (message.has_summary_query()) co_return co_await SendSummary(message.summary_query());
  if (message.has_fetch()) co_return co_await SendBlocks(message.fetch());
  co_return MakeError(Errc::kProtocol, "a message that a source does not take");
}

Awaitable<Status> FetchService::SendSummary(kvmmesh::SummaryQuery query) {
  const SummaryImage image = node_.summary.Answer(query.epoch(), query.sequence());
  kvmmesh::PeerMessage answer;
  kvmmesh::Summary& summary = *answer.mutable_summary();
  summary.set_epoch(image.epoch);
  summary.set_sequence(image.sequence);
  summary.set_snapshot(image.snapshot);
  summary.set_buckets(image.buckets);
  summary.set_keys(image.keys);
  const std::string bytes = answer.SerializeAsString();
  const std::span<const std::byte> payload = std::as_bytes(std::span(image.payload));
  co_return co_await channel_->Send(bytes, payload, {steady_clock::now() + kSendTimeout, kSendStall});
}

Awaitable<Status> FetchService::SendBlocks(kvmmesh::Fetch fetch) {
  const Time deadline = steady_clock::now() + milliseconds(std::min(fetch.within_ms(), kMaxWithinMs));
  Result<kvmmesh::FetchEnd::Reason> reason = co_await SendBatches(fetch, deadline);
  if (!reason) co_return reason.error();
  kvmmesh::PeerMessage answer;
  answer.mutable_end()->set_request(fetch.request());
  answer.mutable_end()->set_reason(*reason);
  const std::string bytes = answer.SerializeAsString();
  co_return co_await channel_->Send(bytes, {}, steady_clock::now() + kSendStall);
}

// An error: the connection is not usable any more.
Awaitable<Result<kvmmesh::FetchEnd::Reason>> FetchService::SendBatches(kvmmesh::Fetch fetch, Time deadline) {
  using Reason = kvmmesh::FetchEnd;
  const Result<std::vector<BlockKey>> keys = DecodeKeys(fetch.keys());
  const Result<BlockShape> shape = BlockShape::FromMessage(fetch.shape(), node_.config.max_block_bytes);
  if (!keys || !shape) co_return Reason::REFUSED;
  // No memory is made for blocks that this node can't have.
  const auto model = node_.models.find(shape->fingerprint);
  if (model == node_.models.end() || !node_.shapes.contains(*shape)) co_return Reason::NOT_HERE;
  Result<std::shared_ptr<SlotPool>> pool = co_await node_.staging.Get(model->second, *shape);
  if (!pool) co_return pool.error().code == Errc::kUnsupported ? Reason::TOO_LARGE : Reason::BUSY;

  const std::size_t batch_blocks = std::clamp<std::size_t>(kBatchBytes / shape->block_bytes, 1, kMaxBatchBlocks);
  for (std::size_t next = 0; next < keys->size();) {
    if (steady_clock::now() >= deadline) co_return Reason::LATE;
    const std::span<const BlockKey> wanted = std::span(*keys).subspan(next, std::min(batch_blocks, keys->size() - next));
    StagingBatch batch(*pool, wanted.size());
    if (batch.size() == 0) co_return Reason::BUSY;
    std::function<std::size_t()> import = [&batch, this, wanted, deadline] { return batch.Import(*node_.client, wanted, deadline); };
    const std::size_t copied = co_await OnThread(node_.copy_threads, import);
    std::vector<Outgoing> blocks;
    blocks.reserve(copied);
    for (std::size_t i = 0; i < copied; ++i) {
      kvmmesh::PeerMessage message;
      kvmmesh::FetchedBlock& block = *message.mutable_block();
      block.set_request(fetch.request());
      block.set_index(static_cast<std::uint32_t>(next + i));
      block.set_key(EncodeKeys(wanted.subspan(i, 1)));
      block.set_bytes(shape->block_bytes);
      block.set_checksum(batch.checksum(i));
      blocks.push_back({message.SerializeAsString(), batch.bytes(i)});
    }
    // A peer that does not read must not keep staging memory from others for long.
    Status sent = co_await channel_->SendAll(blocks, {deadline, kSendStall});
    if (!sent) co_return sent.error();
    node_.counters.served_blocks += copied;
    node_.counters.served_bytes += copied * shape->block_bytes;
    next += copied;
    if (copied < std::min(batch.size(), wanted.size())) co_return Reason::NOT_HERE;
  }
  co_return Reason::COMPLETE;
}

}  // namespace kvm::mesh
