// Publishing: generations made even, records sent in a window, and again after every reconnect.
#include <algorithm>
#include <utility>

#include "client/client_impl.h"
#include "client/connection/wait.h"
#include "client/region/region_impl.h"
#include "proto/base/fault_point.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {
namespace {

// Deferred records never take more than this much of the window of unanswered ones: new ones come first.
constexpr std::size_t kRepublishWindow = 64 * 1024;

// Ends a stream publish when it goes, whether it was run or dropped.
class UnderWay {
 public:
  explicit UnderWay(std::shared_ptr<StreamPublishes> all) : all_(std::move(all)), number_(all_->Begin()) {}
  ~UnderWay() { all_->End(number_); }
  UnderWay(const UnderWay&) = delete;
  UnderWay& operator=(const UnderWay&) = delete;

 private:
  const std::shared_ptr<StreamPublishes> all_;
  const std::uint64_t number_;
};

}  // namespace

std::uint64_t StreamPublishes::Begin() {
  std::lock_guard lock(mutex_);
  under_way_.insert(++last_);
  return last_;
}

void StreamPublishes::End(std::uint64_t number) {
  std::lock_guard lock(mutex_);
  under_way_.erase(number);
  ended_.notify_all();
}

bool StreamPublishes::WaitForAll(Deadline deadline) {
  std::unique_lock lock(mutex_);
  const std::uint64_t last = last_;
  return WaitUntil(ended_, lock, deadline, [&] { return under_way_.empty() || *under_way_.begin() > last; });
}

Result<std::vector<std::uint64_t>> Region::Impl::Checksums(std::span<const PublishRequest> requests) {
  if (!options.checksums) return std::vector<std::uint64_t>();
  std::vector<std::uint32_t> blocks;
  // A block out of range is refused later; any other one stands in for it here.
  for (const PublishRequest& request : requests) blocks.push_back(request.write.block < records.size() ? request.write.block : 0);
  {
    // Registered memory may be freed once the region is closed.
    std::lock_guard lock(mutex);
    if (closed) return MakeError(Errc::kCancelled, "region " + options.name + " is closed");
    ++reading;
  }
  const std::shared_ptr<void> at_end(nullptr, [this](void*) {
    std::lock_guard lock(mutex);
    if (--reading == 0) read.notify_all();
  });
  return backend->Checksum(*memory, options.geometry, blocks);
}

void Region::Impl::Close(Deadline deadline) {
  std::unique_lock lock(mutex);
  closed = true;
  read.wait_until(lock, deadline, [this] { return reading == 0; });
}

PublishOutcome Region::Impl::Publish(std::span<const PublishRequest> requests) {
  PublishOutcome outcome;
  const Result<std::vector<std::uint64_t>> checksums = Checksums(requests);
  if (!checksums) return PublishOutcome{0, requests.size(), 0};
  std::vector<PublishRecord> batch;
  batch.reserve(requests.size());
  std::lock_guard lock(mutex);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const PublishRequest& request = requests[i];
    const BlockWrite& write = request.write;
    const bool inside = write.block < records.size();
    if (inside && !checksums->empty() && generations.Current(write.block) == write.generation)
      generations.SetChecksum(write.block, (*checksums)[i]);
    if (!inside || !generations.FinishWrite(write.block, write.generation)) {
      ++outcome.lost_race;
      continue;
    }
    batch.push_back({request.key, request.parent.lo, write.generation + 1, write.block, request.depth});
    records[write.block] = batch.back();
    KVM_FAULT_POINT(client_block_readable);
  }
  KVM_FAULT_POINT(client_batch_readable);
  outcome.readable = batch.size();
  const std::shared_ptr<Client::Impl> owner = client.lock();
  const std::size_t sent = owner && registered ? owner->SendRecords(*this, batch, false) : 0;
  KVM_FAULT_POINT(client_batch_sent);
  outcome.deferred = batch.size() - sent;
  if (owner) {
    OfferPublished(*owner, batch);
    owner->stats.blocks_published.fetch_add(outcome.readable, std::memory_order_relaxed);
    owner->stats.publishes_deferred.fetch_add(outcome.deferred, std::memory_order_relaxed);
  }
  if (outcome.deferred > 0 && registered) {
    if (republish_from == records.size()) {
      republish_from = 0;
    } else {
      republish_again = true;
    }
  }
  return outcome;
}

// CUDA's callback only posts: nothing there may wait, or be the last to let go of a region or client.
Status Region::Impl::PublishOnStream(std::span<const PublishRequest> requests, StreamHandle stream) {
  struct Waiting {
    Waiting(std::weak_ptr<Impl> region_, std::span<const PublishRequest> requests_, std::shared_ptr<StreamPublishes> all)
        : region(std::move(region_)), requests(requests_.begin(), requests_.end()), under_way(std::move(all)) {}
    const std::weak_ptr<Impl> region;
    const std::vector<PublishRequest> requests;
    const UnderWay under_way;
  };
  const std::shared_ptr<Client::Impl> owner = client.lock();
  if (!owner) return MakeError(Errc::kCancelled, "the client of this region is gone");
  {
    std::lock_guard lock(mutex);
    if (closed) return MakeError(Errc::kCancelled, "region " + options.name + " is closed");
  }
  if (device == DeviceSet::kHost) {
    static_cast<void>(Publish(requests));
    return {};
  }
  // Shared, since std::function wants to be copied.
  auto waiting = std::make_shared<const Waiting>(weak_from_this(), requests, stream_publishes);
  return backend->RunAfter(stream, [mailbox = owner->link.mailbox(), waiting = std::move(waiting)] {
    mailbox->Post([waiting] {
      if (const std::shared_ptr<Impl> region = waiting->region.lock()) static_cast<void>(region->Publish(waiting->requests));
    });
  });
}

bool Region::Impl::PumpLocked(Client::Impl& owner) {
  std::vector<PublishRecord> batch;
  const auto blocks = static_cast<std::uint32_t>(records.size());
  while (registered && republish_from < blocks) {
    batch.clear();
    std::uint32_t next = republish_from;
    for (; next < blocks && batch.size() < kMaxPublishBatch; ++next) {
      const PublishRecord& record = records[next];
      if (record.generation != 0 && generations.Current(next) == record.generation) batch.push_back(record);
    }
    const std::size_t sent = owner.SendRecords(*this, batch, true);
    OfferPublished(owner, std::span(batch).first(sent));
    if (sent < batch.size()) {
      republish_from = batch[sent].block;
      return false;
    }
    republish_from = next;
    if (republish_from == blocks && republish_again) {
      republish_again = false;
      republish_from = 0;
    }
  }
  return republish_from == blocks;
}

std::size_t Client::Impl::SendRecords(Region::Impl& region, std::span<const PublishRecord> records, bool deferred) {
  const std::size_t window = deferred ? std::min(kRepublishWindow, options.max_queued_publishes) : options.max_queued_publishes;
  std::size_t sent = 0;
  while (sent < records.size()) {
    const std::span<const PublishRecord> batch = records.subspan(sent, std::min(records.size() - sent, kMaxPublishBatch));
    kvmwire::ClientMessage message;
    kvmwire::Publish& publish = *message.mutable_publish();
    publish.set_region(region.row);
    publish.set_region_epoch(region.region_epoch);
    publish.set_records(batch.data(), batch.size_bytes());
    // Held while sending, so that sequences reach kvmd in order.
    std::lock_guard lock(publish_mutex_);
    if (unanswered_records_ > 0 && unanswered_records_ + batch.size() > window) break;
    publish.set_sequence(last_sequence_ + 1);
    if (!link.Post(message)) break;
    ++last_sequence_;
    unanswered_records_ += batch.size();
    unanswered_.emplace_back(last_sequence_, batch.size());
    sent += batch.size();
  }
  return sent;
}

void Client::Impl::OnAck(const kvmwire::PublishAck& ack) {
  bool pump = false;
  {
    std::lock_guard lock(publish_mutex_);
    std::size_t answered = 0;
    while (answered < unanswered_.size() && unanswered_[answered].first <= ack.sequence())
      unanswered_records_ -= unanswered_[answered++].second;
    unanswered_.erase(unanswered_.begin(), unanswered_.begin() + static_cast<std::ptrdiff_t>(answered));
    answered_sequence_ = std::max(answered_sequence_, ack.sequence());
    pump = unanswered_records_ < kRepublishWindow / 2;
  }
  stats.publishes_refused.fetch_add(ack.refused_full() + ack.refused_replicas() + ack.refused_stale() + ack.refused_invalid(),
                                    std::memory_order_relaxed);
  if (pump) Pump();
  publish_answered_.notify_all();
}

void Client::Impl::Pump() {
  for (const std::shared_ptr<Region::Impl>& region : Regions()) {
    std::lock_guard lock(region->mutex);
    if (region->registered && region->republish_from < region->records.size()) region->PumpLocked(*this);
  }
}

Status Client::Impl::Flush(Region::Impl& region, Deadline deadline) {
  if (!region.stream_publishes->WaitForAll(deadline))
    return MakeError(Errc::kDeadlineExceeded, "a stream has not reached its publishes in time");
  while (std::chrono::steady_clock::now() < deadline && !Interrupted()) {
    bool all_sent = false, registering = false;
    {
      std::lock_guard lock(region.mutex);
      if (region.closed) return MakeError(Errc::kCancelled, "region " + region.options.name + " is closed");
      if (!region.registered && link.connected() && (region.refusal.message.empty() || region.refusal.code == Errc::kUnavailable)) {
        registering = true;  // after a reconnection it is, in a moment
      } else if (!region.registered) {
        if (!region.refusal.message.empty() && region.refusal.code != Errc::kUnavailable) return region.refusal;
        return MakeError(Errc::kUnavailable, "region " + region.options.name + " is not registered with kvmd now");
      }
      if (!registering) all_sent = region.PumpLocked(*this);
    }
    if (registering) {
      static_cast<void>(Sleep(std::chrono::milliseconds(1)));
      continue;
    }
    std::unique_lock lock(publish_mutex_);
    const std::uint64_t target = last_sequence_;
    const auto answered = [&] { return answered_sequence_ >= target; };
    if (!WaitUntil(publish_answered_, lock, deadline, answered)) break;
    if (all_sent && link.connected()) return {};
  }
  return MakeError(Errc::kDeadlineExceeded, "kvmd has not answered all publishes in time");
}

}  // namespace kvm
