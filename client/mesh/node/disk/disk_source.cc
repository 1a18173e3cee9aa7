#include "client/mesh/node/disk/disk_source.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <list>
#include <new>

#include "client/mesh/threads/counted.h"

namespace kvm::mesh {
namespace {

using std::chrono::steady_clock;

constexpr std::uint64_t kReadBytes = std::uint64_t{32} << 20;  // that are read at once
constexpr std::size_t kReadBlocks = 256;

}  // namespace

// Blocks that are read together. It lives until the disk has ended, even if its join has not
// waited.
class DiskSource::Batch : public std::enable_shared_from_this<Batch> {
 public:
  Batch(DiskSource& source, const FetchJob& job, std::size_t first)
      : source_(source), shape_(job.shape), pool_(job.pool), ended_(source.node_.io) {
    const std::size_t most = std::clamp<std::size_t>(kReadBytes / shape_.block_bytes, 1, kReadBlocks);
    for (std::size_t i = first; i < job.keys.size() && reads_.size() < most; ++i) {
      const std::optional<BlockWrite> write = pool_->Take();
      if (!write) break;
      slots_.emplace_back(*pool_, write->block);
      reads_.push_back({job.keys[i], pool_->region().BlockData(write->block)});
      requests_.push_back({job.keys[i], i == 0 ? job.parent : job.keys[i - 1], job.depth + static_cast<std::uint32_t>(i), *write});
    }
  }

  std::size_t size() const noexcept { return reads_.size(); }
  bool done() const noexcept { return done_; }
  std::size_t published() const noexcept { return published_; }

  // Ends when the read has ended, or at `deadline`.
  Awaitable<void> Run(Time deadline) {
    ended_.expires_at(deadline);
    source_.node_.disk->read_thread().Start(
        [self = shared_from_this()] { self->source_.node_.disk->cache().Read(self->shape_, self->reads_); },
        [self = shared_from_this()](const std::exception_ptr& failed) { self->End(failed); });
    boost::system::error_code ignored;
    co_await ended_.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
    if (done_) co_return;
    late_ = true;
    ++source_.node_.disk->overdue();
  }

 private:
  // Publishes what is good, as far as the prefix has no hole; the other slots are free again.
  void End(const std::exception_ptr& failed) {
    done_ = true;
    if (late_) --source_.node_.disk->overdue();
    if (failed) {
      // Some may have been read; what counts is what the reader has said of all.
      for (DiskRead& read : reads_) read.end = DiskReadEnd::kFailed;
    }
    const auto bad = std::find_if(reads_.begin(), reads_.end(), [](const DiskRead& read) { return read.end != DiskReadEnd::kGood; });
    published_ = static_cast<std::size_t>(bad - reads_.begin());
    pool_->Publish(std::span(requests_).first(published_));
    auto slot = slots_.begin();
    for (std::size_t i = 0; i < published_; ++i, ++slot) slot->Published();
    slots_.clear();
    ended_.cancel();
    if (failed) static_cast<void>(source_.node_.work_failures.Note("read of the disk cache", failed));
  }

  DiskSource& source_;
  const BlockShape shape_;
  const std::shared_ptr<SlotPool> pool_;
  boost::asio::steady_timer ended_;
  std::list<TakenSlot> slots_;
  std::vector<DiskRead> reads_;
  std::vector<PublishRequest> requests_;
  std::size_t published_ = 0;
  bool done_ = false, late_ = false;
};

Candidate DiskSource::Consider(std::span<const BlockKey> keys, std::size_t local) const {
  Candidate out;
  out.node = name_;
  out.depth = local + node_.disk->LeadingBlocks(keys.subspan(std::min(local, keys.size())));
  out.bytes_per_s = node_.disk->rate().Expected(steady_clock::now());
  out.in_flight = in_flight_;
  out.refusal = node_.disk->Refusal(node_.client->domain());
  return out;
}

Awaitable<FetchOutcome> DiskSource::Fetch(FetchJob job) {
  FetchOutcome out;
  const Counted busy(in_flight_);
  const Time begin = steady_clock::now();
  try {
    co_await FetchBatches(job, out);
  } catch (const std::bad_alloc&) {
    out.reason = "no memory";
  }
  const Time now = steady_clock::now();
  node_.disk->rate().Measured(out.fetched * job.shape.block_bytes, now - begin, now);
  if (out.fetched == 0) node_.disk->rate().Failed(now);
  co_return out;
}

Awaitable<void> DiskSource::FetchBatches(const FetchJob& job, FetchOutcome& out) {
  while (out.fetched < job.keys.size()) {
    if (steady_clock::now() >= job.deadline) {
      out.reason = "too late";
      co_return;
    }
    const auto batch = std::make_shared<Batch>(*this, job, out.fetched);
    if (batch->size() == 0) {
      out.reason = "all memory for blocks of other nodes and of the disk is in use";
      co_return;
    }
    co_await batch->Run(job.deadline);
    out.fetched += batch->published();
    if (batch->done() && batch->published() == batch->size()) continue;
    out.reason = batch->done() ? "a block could not be read" : "too late";
    co_return;
  }
}

}  // namespace kvm::mesh
