// A region of this client: memory, generations, what has been published of it, and how it stands
// with kvmd.
//
// Publish, PublishOnStream, Offload and Flush are what the engine's threads call through Region;
// the client's Registrar calls the rest, mostly on the link's thread. Owns the memory and the
// records; needs of its client what RegionHost says.
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
    std::shared_ptr<PeerMapping> own_mapping;  // so that this process imports from it like from any other
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
  // Offers published blocks, whatever the host cache asks for; how many. `wait` (may be null): with
  // precedence.
  std::size_t Offload(std::span<const std::uint32_t> blocks, const std::shared_ptr<OffloadWait>& wait) KVM_EXCLUDES(mutex_);
  Status Flush(Deadline deadline) KVM_EXCLUDES(mutex_);
  // The end of ownership (I10): no block is readable or can become so, whatever is under way. One
  // atomic operation each.
  void End() noexcept { generations.EndAll(); }
  bool closed() const KVM_EXCLUDES(mutex_);

  // ---- registration

  enum class Ask { kSend, kWait, kRegistered, kClosed };
  // Whether a request is to be sent now: not if there is one under way, whose answer is for
  // `waiter` (may be empty) as well, or nothing to ask for; then `waiter` is not kept.
  Ask BeginRegistration(const Reply& waiter) KVM_EXCLUDES(mutex_);
  // kvmd has accepted it in `row`. False: the region has been closed meanwhile and is to be taken
  // out again.
  bool Accepted(RegionHost& owner, const RegionRow& row) KVM_EXCLUDES(mutex_);
  void Refused(const Error& why) KVM_EXCLUDES(mutex_);
  std::vector<Reply> TakeWaiters() KVM_EXCLUDES(mutex_);
  // Whether kvmd refused it for want of something, of which there may be some again.
  bool IsWorthAsking() const KVM_EXCLUDES(mutex_);
  void ConnectionEnded() KVM_EXCLUDES(mutex_);
  // Sends deferred records while the window allows.
  void Pump(RegionHost& owner) KVM_EXCLUDES(mutex_);

  // Goes on where a dead owner stopped. Before the region is shared; it is registered then.
  // `published`: the bytes of its PublishRecords.
  void TakeOver(const RegionRow& row, std::span<const std::byte> published) KVM_EXCLUDES(mutex_);
  std::vector<AdoptedBlock> Published() const KVM_EXCLUDES(mutex_);
  RegionRow row() const KVM_EXCLUDES(mutex_);

  // ---- the end

  // Closes it and waits until no publish reads its memory, or until `deadline`.
  void Close(Deadline deadline) KVM_EXCLUDES(mutex_);
  // The row of a closed region that kvmd is to be told to take out; nothing: it has none, or was
  // told.
  std::optional<RegionRow> TakeRow() KVM_EXCLUDES(mutex_);
  // Whether importers may have it mapped, since it has been registered at some time; forgets that.
  bool ForgetImporters() KVM_EXCLUDES(mutex_);

  // ---- OffloadSource

  std::optional<RegionRow> OpenRow() const override KVM_EXCLUDES(mutex_);
  std::uint64_t BlockBytes() const noexcept override { return block_bytes; }
  std::size_t Device() const noexcept override { return device; }
  MemoryBackend& Backend() const noexcept override { return *backend; }
  const PeerMapping& Mapping() const noexcept override { return *own_mapping; }

 private:
  // Without checksums an empty list; an error: they could not be computed, or the region is closed,
  // and nothing may be published.
  Result<std::vector<std::uint64_t>> Checksums(std::span<const PublishRequest> requests) KVM_EXCLUDES(mutex_);
  // Makes them readable as far as no other write has begun, and their records this region's;
  // appends the records.
  void MakeReadable(std::span<const PublishRequest> requests, std::span<const std::uint64_t> checksums, std::vector<PublishRecord>& batch)
      KVM_REQUIRES(mutex_);
  // To the host cache, if this region offers what it publishes.
  void OfferPublished(RegionHost& owner, std::span<const PublishRecord> batch);
  // True: no deferred records are left.
  bool PumpLocked(RegionHost& owner) KVM_REQUIRES(mutex_);
  void GoTo(RegionState next) KVM_REQUIRES(mutex_);

  const std::shared_ptr<StreamPublishes> stream_publishes_ = std::make_shared<StreamPublishes>();

  mutable Mutex mutex_;
  RegionState state_ KVM_GUARDED_BY(mutex_) = RegionState::kOffline;
  RegionRow row_ KVM_GUARDED_BY(mutex_);
  std::vector<Reply> waiters_ KVM_GUARDED_BY(mutex_);  // for the answer that is under way
  Error refusal_ KVM_GUARDED_BY(mutex_);               // kvmd's, of the last registration
  bool known_to_kvmd_ KVM_GUARDED_BY(mutex_) = false;  // has been registered at some time
  PublishedRecords records_ KVM_GUARDED_BY(mutex_);
  unsigned reading_ KVM_GUARDED_BY(mutex_) = 0;  // publishes that read the memory, for checksums
  std::condition_variable read_;
};

}  // namespace kvm
