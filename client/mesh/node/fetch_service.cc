#include "client/mesh/node/fetch_service.h"

#include <algorithm>

#include "client/mesh/node/disk_run.h"
#include "client/mesh/node/staging_batch.h"
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
  const bool disk = query.disk() && node_.disk;
  const SummaryImage image = (disk ? node_.disk_summary : node_.summary).Answer(query.epoch(), query.sequence());
  kvmmesh::PeerMessage answer;
  kvmmesh::Summary& summary = *answer.mutable_summary();
  summary.set_epoch(image.epoch);
  summary.set_sequence(image.sequence);
  summary.set_snapshot(image.snapshot);
  summary.set_buckets(image.buckets);
  summary.set_keys(image.keys);
  summary.set_disk(disk);
  summary.set_has_disk(DiskServes());
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
  Asked asked{fetch.request(), *shape, *keys, deadline, nullptr};
  // No memory is made for blocks that this node can't have.
  const auto model = node_.models.find(shape->fingerprint);
  if (model != node_.models.end() && node_.shapes.contains(*shape)) {
    Result<std::shared_ptr<SlotPool>> pool = co_await node_.staging.Get(model->second, *shape);
    if (!pool) co_return pool.error().code == Errc::kUnsupported ? Reason::TOO_LARGE : Reason::BUSY;
    asked.pool = std::move(*pool);
  }
  if (DiskServes()) node_.disk->Use(*keys);
  while (asked.next < keys->size()) {
    if (steady_clock::now() >= deadline) co_return Reason::LATE;
    Part part{0, Reason::NOT_HERE};
    if (asked.pool) {
      Result<Part> sent = co_await SendFromMemory(asked);
      if (!sent) co_return sent.error();
      part = *sent;
    }
    if (part.end == Reason::NOT_HERE) {
      Result<Part> sent = co_await SendFromDisk(asked);
      if (!sent) co_return sent.error();
      part = *sent;
    }
    if (part.end != Reason::COMPLETE) co_return part.end;
  }
  co_return Reason::COMPLETE;
}

std::size_t FetchService::BatchBlocks(const BlockShape& shape) {
  return std::clamp<std::size_t>(kBatchBytes / shape.block_bytes, 1, kMaxBatchBlocks);
}

bool FetchService::DiskServes() const { return node_.disk && node_.disk->serves(node_.client->domain()); }

Awaitable<Result<FetchService::Part>> FetchService::SendFromMemory(Asked& asked) {
  const std::span<const BlockKey> left = std::span(asked.keys).subspan(asked.next);
  const std::span<const BlockKey> wanted = left.first(std::min(BatchBlocks(asked.shape), left.size()));
  StagingBatch batch(asked.pool, wanted.size());
  if (batch.size() == 0) co_return Part{0, kvmmesh::FetchEnd::BUSY};
  std::function<std::size_t()> import = [&] { return batch.Import(*node_.client, wanted, asked.deadline); };
  const Result<std::size_t> copied = co_await node_.copy_threads.Run("copy for a peer", import);
  if (!copied) co_return Part{0, kvmmesh::FetchEnd::BUSY};
  Status sent = co_await SendAll(asked, batch, *copied, false);
  if (!sent) co_return sent.error();
  const bool whole = *copied == std::min(batch.size(), wanted.size());
  co_return Part{*copied, whole ? kvmmesh::FetchEnd::COMPLETE : kvmmesh::FetchEnd::NOT_HERE};
}

std::size_t FetchService::DiskBlocks(std::span<const BlockKey> keys) const {
  const std::size_t on_disk = DiskServes() ? node_.disk->LeadingBlocks(keys) : 0;
  // What is in memory comes from there; of the first block memory has just said that it is not.
  std::size_t count = std::min<std::size_t>(on_disk, 1);
  while (count < on_disk && !node_.summary.Contains(keys[count])) ++count;
  return count;
}

Awaitable<Result<FetchService::Part>> FetchService::SendFromDisk(Asked& asked) {
  const std::span<const BlockKey> left = std::span(asked.keys).subspan(asked.next);
  const std::size_t count = DiskBlocks(left.first(std::min(BatchBlocks(asked.shape), left.size())));
  if (count == 0) co_return Part{0, kvmmesh::FetchEnd::NOT_HERE};
  const std::shared_ptr<DiskRun> run = DiskRun::Make(node_, asked.shape, left.first(count));
  if (!run) co_return Part{0, kvmmesh::FetchEnd::BUSY};
  const bool in_time = co_await run->Read(asked.deadline);
  if (!in_time) co_return Part{0, kvmmesh::FetchEnd::LATE};
  const std::size_t good = run->good();
  Status sent = co_await SendAll(asked, *run, good, true);
  if (!sent) co_return sent.error();
  node_.counters.served_from_disk += good;
  co_return Part{good, good == count ? kvmmesh::FetchEnd::COMPLETE : kvmmesh::FetchEnd::NOT_HERE};
}

template <class Blocks>
Awaitable<Status> FetchService::SendAll(Asked& asked, const Blocks& blocks, std::size_t count, bool from_disk) {
  std::vector<Outgoing> out;
  out.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    kvmmesh::PeerMessage message;
    kvmmesh::FetchedBlock& block = *message.mutable_block();
    block.set_request(asked.request);
    block.set_index(static_cast<std::uint32_t>(asked.next + i));
    block.set_key(EncodeKeys(std::span(asked.keys).subspan(asked.next + i, 1)));
    block.set_bytes(asked.shape.block_bytes);
    block.set_checksum(blocks.checksum(i));
    block.set_from_disk(from_disk);
    out.push_back({message.SerializeAsString(), blocks.bytes(i)});
  }
  // A peer that does not read must not keep memory from others for long.
  Status sent = co_await channel_->SendAll(out, {asked.deadline, kSendStall});
  if (!sent) co_return sent;
  node_.counters.served_blocks += count;
  node_.counters.served_bytes += count * asked.shape.block_bytes;
  asked.next += count;
  co_return sent;
}

}  // namespace kvm::mesh
