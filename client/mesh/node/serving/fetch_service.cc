#include "client/mesh/node/serving/fetch_service.h"

#include <algorithm>
#include <utility>

#include "client/mesh/memory/staging_batch.h"
#include "client/mesh/node/disk/disk_run.h"
#include "client/mesh/node/peers/hello_checks.h"
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
// Of blocks that are copied at a time, while the ones before are sent: enough to make up for the
// change of threads, and little enough to be in the cache still when it is sent. libkvclient's
// copies of 8 MiB and more bypass the cache.
constexpr std::uint64_t kCopyBytes = std::uint64_t{2} << 20;
// That are read from the disk before the first one is sent
constexpr std::uint64_t kDiskBatchBytes = std::uint64_t{8} << 20;
// In one answer, and so in few calls of the kernel.
constexpr std::uint64_t kAnswerBytes = std::uint64_t{1} << 20;
constexpr std::size_t kMaxBatchBlocks = 256;

// `domain`: of this node; empty: not known before kvmd has been connected to.
Status Fits(const kvmmesh::Hello& hello, const std::string& domain) {
  if (domain.empty()) return MakeError(Errc::kUnavailable, "not connected to kvmd yet");
  if (Status same = CheckVersion(hello, "node " + hello.node()); !same) return same;
  return CheckDomain(hello, "node " + hello.node(), domain);
}

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
  const std::string domain = node_.client->domain();
  const Status fits = Fits(message.hello(), domain);
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
  if (!sent) co_return sent;
  if (!fits) co_return fits;
  co_return co_await channel_->Use(message.hello().bulk(), deadline);
}

Awaitable<Status> FetchService::Answer(kvmmesh::PeerMessage message) {
  if (message.has_summary_query()) co_return co_await SendSummary(message.summary_query());
  if (message.has_fetch()) co_return co_await SendBlocks(message.fetch());
  co_return MakeError(Errc::kProtocol, "a message that a source does not take");
}

Awaitable<Status> FetchService::SendSummary(kvmmesh::SummaryQuery query) {
  const bool disk = query.disk() && node_.disk;
  const std::shared_ptr<const SummaryImage> image = (disk ? node_.disk_summary : node_.summary).Share(query.epoch(), query.sequence());
  kvmmesh::PeerMessage answer;
  kvmmesh::Summary& summary = *answer.mutable_summary();
  summary.set_epoch(image->epoch);
  summary.set_sequence(image->sequence);
  summary.set_snapshot(image->snapshot);
  summary.set_buckets(image->buckets);
  summary.set_keys(image->keys);
  summary.set_disk(disk);
  summary.set_has_disk(DiskServes());
  const std::string bytes = answer.SerializeAsString();
  const std::span<const std::byte> payload = std::as_bytes(std::span(image->payload));
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
  const std::uint64_t most = std::min<std::uint64_t>({kMaxTogether, fetch.together(), kAnswerBytes / shape->block_bytes});
  Asked asked{fetch.request(), *shape, *keys, deadline, std::max<std::size_t>(most, 1), nullptr};
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

std::size_t FetchService::BatchBlocks(const BlockShape& shape, std::uint64_t bytes) {
  return std::clamp<std::size_t>(bytes / shape.block_bytes, 1, kMaxBatchBlocks);
}

bool FetchService::DiskServes() const { return node_.disk && node_.disk->serves(node_.client->domain()); }

std::unique_ptr<StagedCopy> FetchService::CopyFrom(const Asked& asked, std::size_t next) {
  if (next >= asked.keys.size() || steady_clock::now() >= asked.deadline) return nullptr;
  const std::span<const BlockKey> left = std::span(asked.keys).subspan(next);
  const std::size_t most = std::min(BatchBlocks(asked.shape, kCopyBytes), left.size());
  auto copy = std::make_unique<StagedCopy>(node_, asked.pool, left.first(most), asked.deadline);
  return copy->wanted() == 0 ? nullptr : std::move(copy);
}

// Copies are one step ahead of what is sent.
Awaitable<Result<FetchService::Part>> FetchService::SendFromMemory(Asked& asked) {
  std::unique_ptr<StagedCopy> ahead = CopyFrom(asked, asked.next);
  if (!ahead) co_return Part{0, kvmmesh::FetchEnd::BUSY};
  Part part;
  while (ahead) {
    const std::unique_ptr<StagedCopy> ready = std::exchange(ahead, nullptr);
    const Result<std::size_t> copied = co_await ready->Copied();
    if (!copied) co_return Part{part.blocks, kvmmesh::FetchEnd::BUSY};
    const bool whole = *copied == ready->wanted();
    if (whole) ahead = CopyFrom(asked, asked.next + *copied);
    Status sent = co_await SendAll(asked, ready->blocks(), *copied, false);
    if (!sent) {
      // Its thread is not to be waited for in a destructor.
      if (ahead) static_cast<void>(co_await ahead->Copied());
      co_return sent.error();
    }
    part.blocks += *copied;
    if (!whole) part.end = kvmmesh::FetchEnd::NOT_HERE;
  }
  co_return part;
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
  const std::size_t count = DiskBlocks(left.first(std::min(BatchBlocks(asked.shape, kDiskBatchBytes), left.size())));
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
  for (std::size_t begin = 0; begin < count; begin += asked.together) {
    const std::size_t end = std::min(begin + asked.together, count);
    kvmmesh::PeerMessage message;
    kvmmesh::FetchedBlocks& answer = *message.mutable_blocks();
    answer.set_request(asked.request);
    answer.set_index(static_cast<std::uint32_t>(asked.next + begin));
    answer.set_keys(EncodeKeys(std::span(asked.keys).subspan(asked.next + begin, end - begin)));
    answer.set_bytes(asked.shape.block_bytes);
    answer.set_from_disk(from_disk);
    Outgoing& each = out.emplace_back();
    for (std::size_t i = begin; i < end; ++i) {
      answer.add_checksums(blocks.checksum(i));
      each.payload.push_back(blocks.bytes(i));
    }
    each.message = message.SerializeAsString();
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
