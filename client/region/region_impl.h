// Region::Impl: a region of this client: its memory, its generations, the records that it has
// published, and its registration with kvmd.
//
// The engine's threads call Publish, PublishOnStream, Offload and Flush through Region; the
// client's Registrar calls the rest, mostly on the link's thread. It owns the memory and the
// records, and uses the parts of its client that RegionHost lists.
#pragma once

#include <condition_variable>
#include <memory>
#include <optional>
#include <vector>

#include "client/connection/link.h"
#include "client/connection/owner_process.h"
#include "client/offload/offload_source.h"
#include "client/peers/peers.h"
#include "client/region/published_records.h"
#include "client/region/region_host.h"
#include "client/region/region_state.h"
#include "client/region/stream_publishes.h"
#include "cuda/memory_backend.h"
#include "proto/base/thread_safety.h"
#include "proto/wire/publish_record.h"

namespace kvm {

// Thread-safe. `host` is set before the region is shared.
struct Region::Impl final : OffloadSource, std::enable_shared_from_this<Region::Impl> {
  struct Parts {
    RegionOptions options;  // complete and checked
    Model model;
    std::size_t device = DeviceSet::kHost;  // of the client's DeviceSet
    std::shared_ptr<MemoryBackend> backend;
    std::shared_ptr<LocalMemory> memory;
    OwnedMemory generation_memory;
    GenerationWriter generations;
    // So that this process can import from it like from a peer's
    std::shared_ptr<PeerMapping> own_mapping;
  };
  explicit Impl(Parts parts);

  const OwnerProcess process;
  const RegionOptions options;
  const Model model;
  const std::uint64_t block_bytes;
  const std::size_t device;
  const std::shared_ptr<MemoryBackend> backend;
  const std::shared_ptr<LocalMemory> memory;
  const OwnedMemory generation_memory;
  GenerationWriter generations;
  const std::shared_ptr<PeerMapping> own_mapping;
  std::weak_ptr<RegionHost> host;

  kvmwire::RegionDescriptor Descriptor() const;
  FileId Identity() const;

  // ---- the engine's threads

  PublishOutcome Publish(std::span<const PublishRequest> requests) KVM_EXCLUDES(mutex_);
  Status PublishOnStream(std::span<const PublishRequest> requests, StreamHandle stream) KVM_EXCLUDES(mutex_);
  // Offers published blocks to the host cache, independent of its admission, and returns how many
  // were queued. With `wait` (may be null), they are queued before all others.
  std::size_t Offload(std::span<const std::uint32_t> blocks, const std::shared_ptr<OffloadWait>& wait) KVM_EXCLUDES(mutex_);
  Status Flush(Deadline deadline) KVM_EXCLUDES(mutex_);
  // Ends the ownership of all blocks: none is readable or can become so, even if a write is under
  // way (I10: the end of ownership is written, not announced). One atomic operation for each block.
  void End() noexcept { generations.EndAll(); }
  bool closed() const KVM_EXCLUDES(mutex_);

  // ---- registration

  enum class Ask { kSend, kWait, kRegistered, kClosed };
  // Whether a request is to be sent now. kWait: a request is under way, and `waiter` (may be empty)
  // gets its answer as well. kRegistered, kClosed: there is nothing to ask for, and `waiter` is not
  // kept.
  Ask BeginRegistration(const Reply& waiter) KVM_EXCLUDES(mutex_);
  // Called when kvmd has accepted the region in `row`. False: the region has been closed meanwhile,
  // and must be unregistered again.
  bool Accepted(RegionHost& owner, const RegionRow& row) KVM_EXCLUDES(mutex_);
  void Refused(const Error& why) KVM_EXCLUDES(mutex_);
  std::vector<Reply> TakeWaiters() KVM_EXCLUDES(mutex_);
  // Whether kvmd refused it for lack of a resource, so that another request may succeed.
  bool IsWorthAsking() const KVM_EXCLUDES(mutex_);
  void ConnectionEnded() KVM_EXCLUDES(mutex_);
  // Sends deferred records while the window allows.
  void Pump(RegionHost& owner) KVM_EXCLUDES(mutex_);

  // Takes over the state of a dead owner's region, which is registered in `row`. To be called
  // before the region is shared. `published`: the bytes of its PublishRecords.
  void TakeOver(const RegionRow& row, std::span<const std::byte> published) KVM_EXCLUDES(mutex_);
  std::vector<AdoptedBlock> Published() const KVM_EXCLUDES(mutex_);
  RegionRow row() const KVM_EXCLUDES(mutex_);

  // ---- the region's end

  // Closes it and waits until no publish reads its memory, or until `deadline`.
  void Close(Deadline deadline) KVM_EXCLUDES(mutex_);
  // The row of a closed region, if kvmd still has to be told to remove it; empty if it has none, or
  // kvmd has been told.
  std::optional<RegionRow> TakeRow() KVM_EXCLUDES(mutex_);
  // Whether importers may have it mapped, since it has been registered at some time. Resets that
  // flag.
  bool ForgetImporters() KVM_EXCLUDES(mutex_);

  // ---- OffloadSource

  std::optional<RegionRow> OpenRow() const override KVM_EXCLUDES(mutex_);
  std::uint64_t BlockBytes() const noexcept override { return block_bytes; }
  std::size_t Device() const noexcept override { return device; }
  MemoryBackend& Backend() const noexcept override { return *backend; }
  const PeerMapping& Mapping() const noexcept override { return *own_mapping; }

 private:
  // The checksum of each request's block, kNoChecksum if it is not in the sample; an empty list if
  // the region's table has none. After an error nothing may
  // be published: they could not be computed, or the region is closed.
  Result<std::vector<std::uint64_t>> Checksums(std::span<const PublishRequest> requests) KVM_EXCLUDES(mutex_);
  // Makes the blocks readable for which no other write has begun, stores their records, and appends
  // these to `batch`.
  void MakeReadable(std::span<const PublishRequest> requests, std::span<const std::uint64_t> checksums, std::vector<PublishRecord>& batch)
      KVM_REQUIRES(mutex_);
  // Offers the blocks to the host cache, if this region offers the blocks that it publishes.
  void OfferPublished(RegionHost& owner, std::span<const PublishRecord> batch);
  // True if no deferred records are left.
  bool PumpLocked(RegionHost& owner) KVM_REQUIRES(mutex_);
  void GoTo(RegionState next) KVM_REQUIRES(mutex_);

  const std::shared_ptr<StreamPublishes> stream_publishes_ = std::make_shared<StreamPublishes>();

  mutable Mutex mutex_;
  RegionState state_ KVM_GUARDED_BY(mutex_) = RegionState::kOffline;
  RegionRow row_ KVM_GUARDED_BY(mutex_);
  // Callers that wait for the answer to the request under way
  std::vector<Reply> waiters_ KVM_GUARDED_BY(mutex_);
  // kvmd's error, if it refused the last registration
  Error refusal_ KVM_GUARDED_BY(mutex_);
  bool known_to_kvmd_ KVM_GUARDED_BY(mutex_) = false;  // has been registered at some time
  PublishedRecords records_ KVM_GUARDED_BY(mutex_);
  unsigned reading_ KVM_GUARDED_BY(mutex_) = 0;  // publishes that read the memory, for checksums
  std::condition_variable read_;
};

}  // namespace kvm
