#include "client/mesh/node/peer.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "client/mesh/node/staging_batch.h"
#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kConnectTimeout{1000};
constexpr milliseconds kPullTimeout{5000};
constexpr milliseconds kShunned{30'000};  // after a lie
constexpr unsigned kMaxPauseFactor = 16;
constexpr std::size_t kMaxIdle = 4;

milliseconds Left(Time deadline) { return std::max(milliseconds(0), std::chrono::floor<milliseconds>(deadline - steady_clock::now())); }

std::string ReasonText(kvmmesh::FetchEnd::Reason reason) {
  switch (reason) {
    case kvmmesh::FetchEnd::COMPLETE: return {};
    case kvmmesh::FetchEnd::NOT_HERE: return "not there";
    case kvmmesh::FetchEnd::BUSY: return "busy";
    case kvmmesh::FetchEnd::LATE: return "too late";
    default: return "refused";
  }
}

}  // namespace

bool Peer::fresh() const noexcept {
  return pulled_ != Time() && steady_clock::now() - pulled_ < milliseconds(3 * node_.config.pull_interval_ms + 1000);
}

std::size_t Peer::MatchedDepth(std::span<const BlockKey> keys, std::size_t known) const noexcept {
  if (!fresh() || steady_clock::now() < shunned_until_) return known;
  return summary_.MatchedDepth(keys, known);
}

void Peer::Note(const Error& error) {
  ++failures_;
  last_error_ = error.ToString();
  if (error.code == Errc::kProtocol) shunned_until_ = steady_clock::now() + kShunned;
}

void Peer::Describe(kvmmesh::PeerStatus& out) const {
  out.set_node(config_.node);
  out.set_address(config_.address);
  out.set_fresh(fresh());
  out.set_keys(summary_.keys());
  out.set_fetched_blocks(fetched_blocks_);
  out.set_fetched_bytes(fetched_bytes_);
  out.set_failures(failures_);
  out.set_bytes_per_s(bytes_per_s_);
  out.set_last_error(last_error_);
}

Awaitable<Result<std::shared_ptr<Channel>>> Peer::Open(Time deadline) {
  if (node_.client->domain().empty()) co_return MakeError(Errc::kUnavailable, "not connected to kvmd yet");
  const Time connected_by = std::min(deadline, steady_clock::now() + kConnectTimeout);
  Result<std::shared_ptr<Channel>> channel = co_await transfer_.Connect(config_.address, connected_by);
  if (!channel) co_return channel.error();
  kvmmesh::PeerMessage message;
  message.mutable_hello()->set_version(kMeshVersion);
  message.mutable_hello()->set_node(node_.config.node);
  message.mutable_hello()->set_domain(node_.client->domain());
  const std::string bytes = message.SerializeAsString();
  Status sent = co_await (*channel)->Send(bytes, {}, connected_by);
  if (!sent) co_return sent.error();
  Result<Received> received = co_await (*channel)->Receive(connected_by);
  if (!received) co_return received.error();
  if (received->payload_bytes != 0 || !message.ParseFromString(received->message) || !message.has_hello())
    co_return MakeError(Errc::kProtocol, config_.node + " answered a hello with something else");
  const kvmmesh::Hello& hello = message.hello();
  if (hello.version() != kMeshVersion) co_return MakeError(Errc::kVersionMismatch, config_.node + " has another version of the protocol");
  if (hello.node() != config_.node) co_return MakeError(Errc::kPermissionDenied, "the peer calls itself " + hello.node());
  if (hello.domain() != node_.client->domain())
    co_return MakeError(Errc::kPermissionDenied, config_.node + " is of domain " + hello.domain() + ", not " + node_.client->domain());
  co_return channel;
}

Awaitable<void> Peer::Pull() {
  std::shared_ptr<Channel> channel;
  asio::steady_timer pause(node_.io);
  for (;;) {
    Status good;
    if (!channel || !channel->open()) {
      Result<std::shared_ptr<Channel>> opened = co_await Open(steady_clock::now() + kPullTimeout);
      if (opened) {
        channel = *opened;
      } else {
        good = opened.error();
      }
    }
    if (good) good = co_await PullOnce(channel);
    if (good) {
      pulled_ = steady_clock::now();
      failed_pulls_ = 0;
    } else {
      // A summary that does not continue the known one is asked for anew, at once.
      const bool again = good.error().code == Errc::kStale && summary_.epoch() != 0;
      summary_.Forget();
      if (again) continue;
      Note(good.error());
      ++failed_pulls_;
      if (channel) channel->Close();
    }
    const unsigned factor = std::min(1u << std::min(failed_pulls_, 5u), kMaxPauseFactor);
    pause.expires_after(milliseconds(node_.config.pull_interval_ms) * factor);
    boost::system::error_code ignored;
    co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

Awaitable<Status> Peer::PullOnce(std::shared_ptr<Channel> channel) {
  const Time deadline = steady_clock::now() + kPullTimeout;
  kvmmesh::PeerMessage message;
  message.mutable_summary_query()->set_epoch(summary_.epoch());
  message.mutable_summary_query()->set_sequence(summary_.sequence());
  const std::string bytes = message.SerializeAsString();
  Status sent = co_await channel->Send(bytes, {}, deadline);
  if (!sent) co_return sent;
  Result<Received> received = co_await channel->Receive(deadline);
  if (!received) co_return received.error();
  if (!message.ParseFromString(received->message) || !message.has_summary())
    co_return MakeError(Errc::kProtocol, config_.node + " answered a query with something else");
  // The payload's length was checked against the frames' limit; memory is taken for no more.
  SummaryImage image{message.summary().epoch(),   message.summary().sequence(), message.summary().snapshot(),
                     message.summary().buckets(), message.summary().keys(),     std::string()};
  image.payload.resize(received->payload_bytes);
  const std::span<std::byte> payload = std::as_writable_bytes(std::span(image.payload));
  Status taken = co_await channel->ReceivePayload(payload, deadline);
  if (!taken) co_return taken;
  co_return summary_.Apply(image);
}

Awaitable<FetchOutcome> Peer::Fetch(FetchJob job) {
  FetchOutcome out;
  std::shared_ptr<Channel> channel;
  while (!idle_.empty() && !channel) {
    channel = std::move(idle_.back());
    idle_.pop_back();
    if (!channel->open()) channel.reset();
  }
  if (!channel) {
    Result<std::shared_ptr<Channel>> opened = co_await Open(job.deadline);
    if (!opened) {
      Note(opened.error());
      out.reason = opened.error().message;
      co_return out;
    }
    channel = *opened;
  }
  ++in_flight_;
  const Time begin = steady_clock::now();
  Result<FetchOutcome> ended = co_await FetchOn(channel, job, out.fetched);
  --in_flight_;
  if (ended) {
    out.reason = ended->reason;
    if (channel->open() && idle_.size() < kMaxIdle) idle_.push_back(channel);
  } else {
    channel->Close();
    Note(ended.error());
    out.reason = ended.error().message;
  }
  const std::uint64_t bytes = out.fetched * job.shape.block_bytes;
  fetched_blocks_ += out.fetched;
  fetched_bytes_ += bytes;
  const double seconds = std::chrono::duration<double>(steady_clock::now() - begin).count();
  if (bytes > 0 && seconds > 0) {
    const auto now = static_cast<std::uint64_t>(static_cast<double>(bytes) / seconds);
    bytes_per_s_ = bytes_per_s_ == 0 ? now : (bytes_per_s_ * 3 + now) / 4;
  }
  co_return out;
}

// `fetched` counts up as blocks are published, whatever happens afterwards.
Awaitable<Result<FetchOutcome>> Peer::FetchOn(std::shared_ptr<Channel> channel, FetchJob job, std::size_t& fetched) {
  const std::uint64_t request = next_request_++;
  kvmmesh::PeerMessage message;
  kvmmesh::Fetch& fetch = *message.mutable_fetch();
  fetch.set_request(request);
  *fetch.mutable_shape() = job.shape.ToMessage();
  fetch.set_keys(EncodeKeys(job.keys));
  fetch.set_within_ms(static_cast<std::uint32_t>(Left(job.deadline).count()));
  const std::string bytes = message.SerializeAsString();
  Status sent = co_await channel->Send(bytes, {}, job.deadline);
  if (!sent) co_return sent.error();
  for (;;) {
    const Time next_by = std::min(job.deadline, steady_clock::now() + milliseconds(node_.config.stall_timeout_ms));
    Result<Received> received = co_await channel->Receive(next_by);
    if (!received) co_return received.error();
    if (!message.ParseFromString(received->message)) co_return MakeError(Errc::kProtocol, config_.node + " sent no message");
    if (message.has_end() && message.end().request() == request && received->payload_bytes == 0) {
      FetchOutcome out;
      out.reason = ReasonText(message.end().reason());
      if (out.reason.empty() && fetched < job.keys.size()) co_return MakeError(Errc::kProtocol, config_.node + " ended early");
      co_return out;
    }
    if (!message.has_block() || message.block().request() != request)
      co_return MakeError(Errc::kProtocol, config_.node + " answered a request with something else");
    Result<std::uint32_t> slot = co_await ReceiveBlock(channel, job, fetched, message.block(), received->payload_bytes);
    if (!slot) co_return slot.error();
    ++fetched;
  }
}

// Receives the block into a slot of its own and publishes it. The slot's generation is odd until
// the bytes have arrived and their checksum agrees; after any failure it holds nothing.
Awaitable<Result<std::uint32_t>> Peer::ReceiveBlock(std::shared_ptr<Channel> channel, const FetchJob& job, std::size_t index,
                                                    const kvmmesh::FetchedBlock& block, std::uint64_t payload_bytes) {
  if (index >= job.keys.size() || block.index() != index) co_return MakeError(Errc::kProtocol, config_.node + " sent a block out of turn");
  if (block.key() != EncodeKeys(job.keys.subspan(index, 1))) co_return MakeError(Errc::kProtocol, config_.node + " sent another block");
  if (block.bytes() != job.shape.block_bytes || payload_bytes != job.shape.block_bytes) {
    co_return MakeError(Errc::kProtocol, config_.node + " sent a block of " + std::to_string(payload_bytes) + " bytes instead of " +
                                             std::to_string(job.shape.block_bytes));
  }
  const std::optional<BlockWrite> write = job.pool->Take();
  if (!write) co_return MakeError(Errc::kResourceExhausted, "all memory for blocks of peers is in use");
  const std::span<std::byte> into(job.pool->region().BlockData(write->block), job.shape.block_bytes);
  const Time by = std::min(job.deadline, steady_clock::now() + milliseconds(node_.config.stall_timeout_ms));
  Status arrived = co_await channel->ReceivePayload(into, by);
  if (arrived && TransferChecksum(into) != block.checksum())
    arrived = MakeError(Errc::kProtocol, config_.node + " sent a block that does not have its checksum");
  if (!arrived) {
    job.pool->Return(write->block);
    co_return arrived.error();
  }
  const PublishRequest request{job.keys[index], index == 0 ? job.parent : job.keys[index - 1],
                               job.depth + static_cast<std::uint32_t>(index), *write};
  job.pool->Publish(std::span(&request, 1));
  co_return write->block;
}

}  // namespace kvm::mesh
