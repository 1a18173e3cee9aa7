#include "client/region/region_impl.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "client/connection/wait.h"
#include "client/region/region_options.h"
#include "proto/base/fault_point.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {

Region::Impl::Impl(Parts parts)
    : options(std::move(parts.options)),
      model(std::move(parts.model)),
      block_bytes(options.geometry.BlockBytes()),
      device(parts.device),
      backend(std::move(parts.backend)),
      memory(std::move(parts.memory)),
      generation_memory(std::move(parts.generation_memory)),
      generations(parts.generations),
      own_mapping(std::move(parts.own_mapping)),
      records_(options.geometry.block_count) {}

kvmwire::RegionDescriptor Region::Impl::Descriptor() const {
  kvmwire::RegionDescriptor out = ExpectedDescriptor(model, options);
  out.set_handle_kind(static_cast<std::uint32_t>(memory->kind()));
  for (std::size_t i = 0; i < memory->handles().size(); ++i) {
    const SegmentHandle& handle = memory->handles()[i];
    kvmwire::Segment& segment = *out.mutable_segments(static_cast<int>(i));
    segment.set_handle(handle.handle);
    segment.set_handle_offset(handle.handle_offset);
    segment.set_allocation(handle.allocation);
    segment.set_allocation_bytes(handle.allocation_bytes);
  }
  out.set_outlives_owner(options.outlives_owner && memory->kind() != layout::HandleKind::kCudaIpc);
  return out;
}

FileId Region::Impl::Identity() const { return FileIdOf(generation_memory.fd()); }

void Region::Impl::GoTo(RegionState next) {
  assert(MayFollow(state_, next));
  state_ = next;
}

bool Region::Impl::closed() const {
  MutexLock lock(mutex_);
  return !IsOpen(state_);
}

// ---- publishing ---------------------------------------------------------------------------------

Result<std::vector<std::uint64_t>> Region::Impl::Checksums(std::span<const PublishRequest> requests) {
  if (!options.checksums) return std::vector<std::uint64_t>();
  std::vector<std::uint64_t> checksums(requests.size(), kNoChecksum);
  std::vector<std::size_t> at;  // of the blocks that get one
  std::vector<std::uint32_t> blocks;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    // A block out of range is refused later.
    if (!InSample(requests[i].key, options.checksum_one_in) || requests[i].write.block >= options.geometry.block_count) continue;
    at.push_back(i);
    blocks.push_back(requests[i].write.block);
  }
  if (blocks.empty()) return checksums;
  {
    // Registered memory may be freed once the region is closed.
    MutexLock lock(mutex_);
    if (!IsOpen(state_)) return MakeError(Errc::kCancelled, "region " + options.name + " is closed");
    ++reading_;
  }
  const std::shared_ptr<void> at_end(nullptr, [this](void*) {
    MutexLock lock(mutex_);
    if (--reading_ == 0) read_.notify_all();
  });
  const Result<std::vector<std::uint64_t>> sums = backend->Checksum(*memory, options.geometry, blocks);
  if (!sums) return sums.error();
  for (std::size_t i = 0; i < at.size(); ++i) checksums[at[i]] = (*sums)[i];
  return checksums;
}

void Region::Impl::MakeReadable(std::span<const PublishRequest> requests, std::span<const std::uint64_t> checksums,
                                std::vector<PublishRecord>& batch) {
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const PublishRequest& request = requests[i];
    const BlockWrite& write = request.write;
    if (write.block >= options.geometry.block_count) continue;
    if (!checksums.empty() && generations.Current(write.block) == write.generation) generations.SetChecksum(write.block, checksums[i]);
    if (!generations.FinishWrite(write.block, write.generation)) continue;
    batch.push_back({request.key, request.parent.lo, write.generation + 1, write.block, request.depth});
    records_.Set(batch.back());
    KVM_FAULT_POINT(client_block_readable);
  }
}

PublishOutcome Region::Impl::Publish(std::span<const PublishRequest> requests) {
  const Result<std::vector<std::uint64_t>> checksums = Checksums(requests);
  if (!checksums) return PublishOutcome{0, requests.size(), 0};
  std::vector<PublishRecord> batch;
  batch.reserve(requests.size());
  // Destroyed after the lock is released: if this is the last reference to the client, the client's
  // destructor closes the region.
  const std::shared_ptr<RegionHost> owner = host.lock();
  MutexLock lock(mutex_);
  MakeReadable(requests, *checksums, batch);
  KVM_FAULT_POINT(client_batch_readable);
  const bool registered = state_ == RegionState::kRegistered;
  const std::size_t sent = owner && registered ? owner->window.Send(row_, batch, PublishWindow::Turn::kNew) : 0;
  KVM_FAULT_POINT(client_batch_sent);
  const PublishOutcome outcome{batch.size(), requests.size() - batch.size(), batch.size() - sent};
  if (owner) {
    OfferPublished(*owner, batch);
    owner->stats.blocks_published.fetch_add(outcome.readable, std::memory_order_relaxed);
    owner->stats.publishes_deferred.fetch_add(outcome.deferred, std::memory_order_relaxed);
  }
  if (outcome.deferred > 0 && registered) records_.Defer();
  return outcome;
}

// CUDA's callback only posts a task that has been made here, since it must not wait, drop the last
// reference to a region or client, nor throw: CUDA's thread would end the process.
Status Region::Impl::PublishOnStream(std::span<const PublishRequest> requests, StreamHandle stream) {
  struct Waiting {
    Waiting(std::weak_ptr<Impl> region_, std::span<const PublishRequest> requests_, std::shared_ptr<StreamPublishes> all)
        : region(std::move(region_)), requests(requests_.begin(), requests_.end()), under_way(std::move(all)) {}
    const std::weak_ptr<Impl> region;
    const std::vector<PublishRequest> requests;
    const StreamPublishes::UnderWay under_way;
  };
  const std::shared_ptr<RegionHost> owner = host.lock();
  if (!owner) return MakeError(Errc::kCancelled, "the client of this region is gone");
  if (closed()) return MakeError(Errc::kCancelled, "region " + options.name + " is closed");
  if (device == DeviceSet::kHost) {
    static_cast<void>(Publish(requests));
    return {};
  }
  // Shared, since std::function requires a copyable function object.
  auto waiting = std::make_shared<const Waiting>(weak_from_this(), requests, stream_publishes_);
  auto task = std::make_shared<Mailbox::Task>();
  task->emplace_back([waiting = std::move(waiting)] {
    if (const std::shared_ptr<Impl> region = waiting->region.lock()) static_cast<void>(region->Publish(waiting->requests));
  });
  return backend->RunAfter(stream, [mailbox = owner->link.mailbox(), task = std::move(task)] { mailbox->Post(std::move(*task)); });
}

bool Region::Impl::PumpLocked(RegionHost& owner) {
  while (state_ == RegionState::kRegistered && !records_.all_sent()) {
    const std::vector<PublishRecord> batch = records_.NextDeferred(generations, kMaxPublishBatch);
    const std::size_t sent = owner.window.Send(row_, batch, PublishWindow::Turn::kDeferred);
    OfferPublished(owner, std::span(batch).first(sent));
    records_.Sent(batch, sent);
    if (sent < batch.size()) return false;
  }
  return records_.all_sent();
}

void Region::Impl::Pump(RegionHost& owner) {
  MutexLock lock(mutex_);
  PumpLocked(owner);
}

Status Region::Impl::Flush(Deadline deadline) {
  const std::shared_ptr<RegionHost> owner = host.lock();
  if (!owner) return MakeError(Errc::kCancelled, "the client of this region is gone");
  if (!stream_publishes_->WaitForAll(deadline)) return MakeError(Errc::kDeadlineExceeded, "a stream has not reached its publishes in time");
  while (std::chrono::steady_clock::now() < deadline && !Interrupted()) {
    bool sent = false, registering = false;
    {
      MutexLock lock(mutex_);
      if (!IsOpen(state_)) return MakeError(Errc::kCancelled, "region " + options.name + " is closed");
      const bool refused = !refusal_.message.empty() && refusal_.code != Errc::kUnavailable;
      if (state_ == RegionState::kRegistered) {
        sent = PumpLocked(*owner);
      } else if (refused) {
        return refusal_;
      } else if (owner->link.connected()) {
        registering = true;  // after a reconnect the region is registered in a moment
      } else {
        return MakeError(Errc::kUnavailable, "region " + options.name + " is not registered with kvmd now");
      }
    }
    if (registering) {
      static_cast<void>(Sleep(std::chrono::milliseconds(1)));
      continue;
    }
    if (!owner->window.WaitForAnswers(deadline)) break;
    if (sent && owner->link.connected()) return {};
  }
  return MakeError(Errc::kDeadlineExceeded, "kvmd has not answered all publishes in time");
}

// ---- the host cache -----------------------------------------------------------------------------

void Region::Impl::OfferPublished(RegionHost& owner, std::span<const PublishRecord> batch) {
  if (options.offload == OffloadMode::kAuto && owner.offloader.WantsPublished())
    static_cast<void>(owner.offloader.Offer(shared_from_this(), batch, /*asked=*/false, nullptr));
}

std::size_t Region::Impl::Offload(std::span<const std::uint32_t> blocks, const std::shared_ptr<OffloadWait>& wait) {
  const std::shared_ptr<RegionHost> owner = host.lock();
  if (!owner || options.offload == OffloadMode::kNever) return 0;
  std::vector<PublishRecord> batch;
  {
    MutexLock lock(mutex_);
    for (const std::uint32_t block : blocks) {
      if (const std::optional<PublishRecord> record = records_.Current(block, generations)) batch.push_back(*record);
    }
  }
  return owner->offloader.Offer(shared_from_this(), batch, /*asked=*/true, wait);
}

std::optional<RegionRow> Region::Impl::OpenRow() const {
  MutexLock lock(mutex_);
  return state_ == RegionState::kRegistered ? std::optional(row_) : std::nullopt;
}

// ---- registration -------------------------------------------------------------------------------

Region::Impl::Ask Region::Impl::BeginRegistration(const Reply& waiter) {
  MutexLock lock(mutex_);
  if (!IsOpen(state_)) return Ask::kClosed;
  if (state_ == RegionState::kRegistered) return Ask::kRegistered;
  if (waiter) waiters_.push_back(waiter);
  if (state_ == RegionState::kRegistering) return Ask::kWait;
  GoTo(RegionState::kRegistering);
  return Ask::kSend;
}

bool Region::Impl::Accepted(RegionHost& owner, const RegionRow& row) {
  MutexLock lock(mutex_);
  GoTo(state_ == RegionState::kAbandoned ? RegionState::kClosing : RegionState::kRegistered);
  row_ = row;
  known_to_kvmd_ = true;
  records_.DeferAll();  // blocks that were published while it was not registered
  refusal_ = Error{};
  if (state_ != RegionState::kRegistered) return false;
  PumpLocked(owner);
  return true;
}

void Region::Impl::Refused(const Error& why) {
  MutexLock lock(mutex_);
  GoTo(state_ == RegionState::kAbandoned ? RegionState::kClosed : RegionState::kOffline);
  refusal_ = why;
}

std::vector<Reply> Region::Impl::TakeWaiters() {
  MutexLock lock(mutex_);
  return std::exchange(waiters_, {});
}

bool Region::Impl::IsWorthAsking() const {
  MutexLock lock(mutex_);
  return state_ == RegionState::kOffline && refusal_.code == Errc::kResourceExhausted;
}

void Region::Impl::ConnectionEnded() {
  MutexLock lock(mutex_);
  if (state_ == RegionState::kRegistered) GoTo(RegionState::kOffline);
  if (state_ == RegionState::kClosing) GoTo(RegionState::kClosed);
  records_.Restart();
}

void Region::Impl::TakeOver(const RegionRow& row, std::span<const std::byte> published) {
  MutexLock lock(mutex_);
  GoTo(RegionState::kRegistering);
  GoTo(RegionState::kRegistered);
  row_ = row;
  known_to_kvmd_ = true;
  for (; published.size() >= sizeof(PublishRecord); published = published.subspan(sizeof(PublishRecord))) {
    PublishRecord record;
    std::memcpy(&record, published.data(), sizeof(record));
    if (record.block < options.geometry.block_count) records_.Set(record);
  }
}

std::vector<AdoptedBlock> Region::Impl::Published() const {
  MutexLock lock(mutex_);
  std::vector<AdoptedBlock> out;
  for (const PublishRecord& record : records_.all()) {
    if (record.generation != 0) out.push_back({record.key, record.block, record.depth});
  }
  return out;
}

RegionRow Region::Impl::row() const {
  MutexLock lock(mutex_);
  return row_;
}

// ---- the end ------------------------------------------------------------------------------------

void Region::Impl::Close(Deadline deadline) {
  MutexLock lock(mutex_);
  if (state_ == RegionState::kOffline) GoTo(RegionState::kClosed);
  if (state_ == RegionState::kRegistering) GoTo(RegionState::kAbandoned);
  if (state_ == RegionState::kRegistered) GoTo(RegionState::kClosing);
  read_.wait_until(lock.native(), deadline, [this]() KVM_REQUIRES(mutex_) { return reading_ == 0; });
}

std::optional<RegionRow> Region::Impl::TakeRow() {
  MutexLock lock(mutex_);
  if (state_ != RegionState::kClosing) return std::nullopt;
  GoTo(RegionState::kClosed);
  return row_;
}

bool Region::Impl::ForgetImporters() {
  MutexLock lock(mutex_);
  return std::exchange(known_to_kvmd_, false);
}

}  // namespace kvm
