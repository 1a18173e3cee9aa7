#include "client/mesh/node/peers/peer.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <new>
#include <utility>

#include "client/mesh/log/event_log.h"
#include "client/mesh/node/peers/arriving_blocks.h"
#include "client/mesh/threads/counted.h"
#include "client/mesh/transfer/tcp_transfer.h"
#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kPullTimeout{60'000};  // of a whole summary
constexpr milliseconds kPullStall{5000};
constexpr milliseconds kShunned{30'000};  // after a lie
constexpr unsigned kMaxPauseFactor = 16;
constexpr unsigned kSilentAfter = 3;       // failed pulls in a row
constexpr std::uint64_t kDeltaBytes = 12;  // of one bucket in a delta
constexpr std::uint64_t kBucketBytes = 8;

milliseconds Left(Time deadline) { return std::max(milliseconds(0), std::chrono::floor<milliseconds>(deadline - steady_clock::now())); }

std::string ReasonText(kvmmesh::FetchEnd::Reason reason) {
  switch (reason) {
    case kvmmesh::FetchEnd::COMPLETE: return {};
    case kvmmesh::FetchEnd::NOT_HERE: return "not there";
    case kvmmesh::FetchEnd::BUSY: return "busy";
    case kvmmesh::FetchEnd::LATE: return "too late";
    case kvmmesh::FetchEnd::TOO_LARGE: return "its staging memory is smaller than a block";
    default: return "refused";
  }
}

// Text that contains what a peer has sent, for people: short, and nothing but printable characters.
std::string Harmless(const std::string& text) {
  constexpr std::size_t kMaxText = 300;
  std::string out = text.substr(0, kMaxText);
  std::replace_if(
      out.begin(), out.end(), [](unsigned char c) { return c < ' ' || c > '~'; }, '?');
  return out;
}

}  // namespace

bool Peer::fresh() const noexcept {
  return pulled_ != Time() && steady_clock::now() - pulled_ < milliseconds(3 * node_.config.pull_interval_ms + 1000);
}

bool Peer::shunned() const noexcept { return steady_clock::now() < shunned_until_; }

Limits Peer::UntilStalled(Time deadline) const noexcept { return {deadline, milliseconds(node_.config.stall_timeout_ms)}; }

void Peer::Note(const Error& error) {
  ++failures_;
  last_error_ = Harmless(error.ToString());
  if (error.code != Errc::kProtocol) return;
  if (!shunned())
    LogEvent(LogLevel::kWarn, "peer_shunned", {{"node", config_.node}, {"address", config_.address}, {"reason", last_error_}});
  shunned_until_ = steady_clock::now() + kShunned;
}

void Peer::Describe(kvmmesh::PeerStatus& out) const {
  out.set_node(config_.node);
  out.set_address(config_.address);
  out.set_known_from(known_from_);
  out.set_disk_keys(disk_summary_.keys());
  out.set_disk_bytes_per_s(disk_rate_.measured());
  out.set_fresh(fresh());
  out.set_keys(summary_.keys());
  out.set_fetched_blocks(fetched_blocks_);
  out.set_fetched_bytes(fetched_bytes_);
  out.set_failures(failures_);
  out.set_bytes_per_s(rate_.measured());
  out.set_last_error(last_error_);
  out.set_shunned(shunned());
  out.set_in_flight(static_cast<std::uint32_t>(in_flight_));
  out.set_round_trip_us(static_cast<std::uint64_t>(round_trip_.count() * 1e6));
}

Awaitable<void> Peer::Pull() {
  bool asked_anew = false;  // since the last pause
  while (!stopped_) {
    Status good;
    try {
      good = co_await PullOn();
    } catch (const std::bad_alloc&) {
      good = MakeError(Errc::kResourceExhausted, "no memory for the summary of " + config_.node);
    }
    if (stopped_) break;
    if (good) {
      pulled_ = steady_clock::now();
      failed_pulls_ = 0;
      LogPull(true);
    } else {
      // A summary that does not continue the known one is asked for anew, at once; but a peer may
      // answer so every time.
      const bool again = good.error().code == Errc::kStale && summary_.epoch() != 0 && !std::exchange(asked_anew, true);
      summary_.Forget();
      disk_summary_.Forget();
      if (again) continue;
      Note(good.error());
      ++failed_pulls_;
      summaries_.reset();
      LogPull(false);
    }
    const unsigned factor = std::min(1u << std::min(failed_pulls_, 5u), kMaxPauseFactor);
    asked_anew = false;
    pause_.expires_after(milliseconds(node_.config.pull_interval_ms) * factor);
    boost::system::error_code ignored;
    co_await pause_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  summaries_.reset();
}

void Peer::LogPull(bool answered) {
  if (told_silent_ != answered) return;
  // Without kvmd no peer can be asked, which Scanner tells once.
  if (!answered && (failed_pulls_ < kSilentAfter || node_.client->domain().empty())) return;
  told_silent_ = !answered;
  if (answered) {
    LogEvent(LogLevel::kInfo, "peer_answers", {{"node", config_.node}, {"address", config_.address}});
  } else {
    LogEvent(LogLevel::kWarn, "peer_silent", {{"node", config_.node}, {"address", config_.address}, {"reason", last_error_}});
  }
}

void Peer::Stop() {
  stopped_ = true;
  pause_.cancel();
  if (summaries_) summaries_->Close();
  channels_.DropIdle();
}

Awaitable<Status> Peer::PullOn() {
  const bool reused = summaries_ && summaries_->current();
  if (reused) {
    Status pulled = co_await PullOnce(summaries_);
    // A source closes connections that are idle, and all when its certificates change.
    if (pulled || pulled.error().code != Errc::kUnavailable) co_return pulled;
  }
  summaries_.reset();
  Result<std::shared_ptr<Channel>> opened = co_await channels_.Open(steady_clock::now() + kPullStall);
  if (!opened) co_return opened.error();
  summaries_ = *opened;
  co_return co_await PullOnce(summaries_);
}

Awaitable<Status> Peer::PullOnce(std::shared_ptr<Channel> channel) {
  Result<bool> has_disk = co_await PullSummary(channel, summary_, false);
  if (!has_disk) co_return has_disk.error();
  if (!*has_disk) {
    disk_summary_.Forget();
    co_return Status();
  }
  has_disk = co_await PullSummary(channel, disk_summary_, true);
  if (!has_disk) co_return has_disk.error();
  co_return Status();
}

Awaitable<Result<bool>> Peer::PullSummary(std::shared_ptr<Channel> channel, PeerSummary& known, bool disk) {
  const Limits limits(steady_clock::now() + kPullTimeout, kPullStall);
  kvmmesh::PeerMessage message;
  message.mutable_summary_query()->set_epoch(known.epoch());
  message.mutable_summary_query()->set_sequence(known.sequence());
  message.mutable_summary_query()->set_disk(disk);
  const std::string bytes = message.SerializeAsString();
  const Time asked = steady_clock::now();
  Status sent = co_await channel->Send(bytes, {}, limits);
  if (!sent) co_return sent.error();
  Result<Received> received = co_await channel->Receive(limits);
  if (!received) co_return received.error();
  const std::chrono::duration<double> answered = steady_clock::now() - asked;
  round_trip_ = round_trip_.count() == 0 ? answered : (round_trip_ * 3 + answered) / 4;
  if (!message.ParseFromString(received->message) || !message.has_summary() || message.summary().disk() != disk)
    co_return MakeError(Errc::kProtocol, config_.node + " answered a query with something else");
  Status taken = co_await TakeSummary(channel, known, message.summary(), received->payload_bytes, limits);
  if (!taken) co_return taken.error();
  co_return message.summary().has_disk();
}

Awaitable<Status> Peer::TakeSummary(std::shared_ptr<Channel> channel, PeerSummary& known, const kvmmesh::Summary& summary,
                                    std::uint64_t payload_bytes, Limits limits) {
  // What a summary takes is bounded before its bytes are read: a filter of that size, and a payload
  // that is no longer than the filter's buckets explain.
  if (summary.buckets() > node_.config.max_summary_bytes / kBucketBytes) {
    co_return MakeError(Errc::kProtocol,
                        config_.node + " has a summary of " + std::to_string(summary.buckets()) + " buckets, more than --max-summary-size");
  }
  if (payload_bytes > summary.buckets() * (summary.snapshot() ? kBucketBytes : kDeltaBytes)) {
    co_return MakeError(Errc::kProtocol, config_.node + " sent a summary of " + std::to_string(summary.buckets()) + " buckets in " +
                                             std::to_string(payload_bytes) + " bytes");
  }
  SummaryImage image{summary.epoch(), summary.sequence(), summary.snapshot(), summary.buckets(), summary.keys(), std::string()};
  Result<std::string> payload = co_await channel->TakePayload(limits);
  if (!payload) co_return payload.error();
  image.payload = std::move(*payload);
  co_return known.Apply(image);
}

bool Peer::IsNamed(const std::string& hint) const {
  if (hint == config_.node) return true;
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address(hint, error);
  const auto own = ParseAddress(config_.address);
  return !error && own && own->address() == address;
}

Candidate Peer::Consider(std::span<const BlockKey> keys, std::size_t local) const {
  Candidate out;
  out.node = name();
  out.fresh = fresh();
  out.shunned = shunned();
  const MatchedDepths depths = out.fresh ? Match(keys, local) : MatchedDepths{local, local};
  out.depth = depths.all;
  out.disk = depths.all - depths.memory;
  out.bytes_per_s = rate_.Expected(steady_clock::now());
  out.disk_bytes_per_s = disk_rate_.Expected(steady_clock::now());
  out.in_flight = in_flight_;
  out.round_trip = round_trip_;
  return out;
}

Awaitable<FetchOutcome> Peer::Fetch(FetchJob job) {
  FetchOutcome out;
  const Counted busy(in_flight_);
  const Time begin = steady_clock::now();
  Status ended;
  try {
    ended = co_await FetchAnyhow(job, out);
  } catch (const std::bad_alloc&) {
    ended = MakeError(Errc::kResourceExhausted, "no memory");
  }
  const Time now = steady_clock::now();
  const std::uint64_t bytes = out.fetched * job.shape.block_bytes;
  fetched_blocks_ += out.fetched;
  fetched_bytes_ += bytes;
  // What the disk had a part in says nothing about the peer's memory.
  PeerRate& rate = out.from_disk > 0 ? disk_rate_ : rate_;
  rate.Measured(bytes, now - begin, now);
  if (!ended) {
    rate.Failed(now);
    Note(ended.error());
    out.reason = Harmless(ended.error().message);
  }
  co_return out;
}

Awaitable<Status> Peer::FetchAnyhow(FetchJob job, FetchOutcome& out) {
  for (;;) {
    std::shared_ptr<Channel> channel = channels_.TakeIdle();
    const bool reused = channel != nullptr;
    if (!channel) {
      Result<std::shared_ptr<Channel>> opened = co_await channels_.Open(job.deadline);
      if (!opened) co_return opened.error();
      channel = *opened;
    }
    Status ended = co_await FetchOn(channel, job, out);
    if (ended) {
      channels_.GiveBack(std::move(channel));
      co_return ended;
    }
    channel->Close();
    // The source had closed the connection since its last use, which says nothing about the source.
    if (!reused || out.fetched > 0 || ended.error().code != Errc::kUnavailable || steady_clock::now() >= job.deadline) co_return ended;
    channels_.DropIdle();
  }
}

// `out.fetched` counts up as blocks are published, whatever happens afterwards.
Awaitable<Status> Peer::FetchOn(std::shared_ptr<Channel> channel, FetchJob job, FetchOutcome& out) {
  const std::uint64_t request = next_request_++;
  kvmmesh::PeerMessage message;
  kvmmesh::Fetch& fetch = *message.mutable_fetch();
  fetch.set_request(request);
  *fetch.mutable_shape() = job.shape.ToMessage();
  fetch.set_keys(EncodeKeys(job.keys));
  fetch.set_within_ms(static_cast<std::uint32_t>(Left(job.deadline).count()));
  fetch.set_together(kMaxTogether);
  const std::string bytes = message.SerializeAsString();
  Status sent = co_await channel->Send(bytes, {}, UntilStalled(job.deadline));
  if (!sent) co_return sent.error();
  for (;;) {
    Result<Received> received = co_await channel->Receive(UntilStalled(job.deadline));
    if (!received) co_return received.error();
    if (!message.ParseFromString(received->message)) co_return MakeError(Errc::kProtocol, config_.node + " sent no message");
    if (message.has_end() && message.end().request() == request && received->payload_bytes == 0) {
      out.reason = ReasonText(message.end().reason());
      if (out.reason.empty() && out.fetched < job.keys.size()) co_return MakeError(Errc::kProtocol, config_.node + " ended early");
      co_return Status();
    }
    if (!message.has_blocks() || message.blocks().request() != request)
      co_return MakeError(Errc::kProtocol, config_.node + " answered a request with something else");
    Status arrived = co_await ReceiveBlocks(channel, job, message.blocks(), received->payload_bytes, out);
    if (!arrived) co_return arrived;
  }
}

// Receives them into slots of their own and publishes them. The slots' generations are odd until
// the bytes have arrived and their checksums agree; after any failure they hold nothing.
Awaitable<Status> Peer::ReceiveBlocks(std::shared_ptr<Channel> channel, const FetchJob& job, const kvmmesh::FetchedBlocks& blocks,
                                      std::uint64_t payload_bytes, FetchOutcome& out) {
  const std::size_t first = out.fetched, count = static_cast<std::size_t>(blocks.checksums_size());
  if (blocks.index() != first || count == 0 || count > std::min(kMaxTogether, job.keys.size() - first))
    co_return MakeError(Errc::kProtocol, config_.node + " sent a block out of turn");
  if (blocks.keys() != EncodeKeys(job.keys.subspan(first, count)))
    co_return MakeError(Errc::kProtocol, config_.node + " sent another block");
  if (blocks.bytes() != job.shape.block_bytes || payload_bytes != count * job.shape.block_bytes) {
    co_return MakeError(Errc::kProtocol, config_.node + " sent " + std::to_string(payload_bytes) + " bytes instead of " +
                                             std::to_string(count * job.shape.block_bytes));
  }
  ArrivingBlocks arriving(job.pool, count);
  if (arriving.size() < count) co_return MakeError(Errc::kResourceExhausted, "all memory for blocks of peers is in use");
  Status arrived = co_await channel->ReceiveParts(arriving.memory(), UntilStalled(job.deadline), &arriving);
  if (!arrived) co_return arrived;
  const std::size_t good = arriving.Good(blocks.checksums());
  arriving.Publish(job, first, good);
  out.fetched += good;
  out.from_disk += blocks.from_disk() ? good : 0;
  if (good < count) co_return MakeError(Errc::kProtocol, config_.node + " sent a block that does not have its checksum");
  co_return Status();
}

}  // namespace kvm::mesh
