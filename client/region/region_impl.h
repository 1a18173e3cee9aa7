// A region of this client: memory, generations, and what has been published of it.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "client/client_impl.h"
#include "client/connection/owner_process.h"
#include "client/peers/peers.h"
#include "cuda/memory_backend.h"
#include "proto/wire/publish_record.h"

namespace kvm {

// PublishOnStream calls that have not taken effect yet, by number. Thread-safe.
class StreamPublishes {
 public:
  std::uint64_t Begin();
  void End(std::uint64_t number);
  // Waits until all that have begun so far have ended; false: not by `deadline`.
  bool WaitForAll(Deadline deadline);

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  std::uint64_t last_ = 0;
  std::set<std::uint64_t> under_way_;
};

struct Region::Impl : std::enable_shared_from_this<Region::Impl> {
  const OwnerProcess process;
  RegionOptions options;
  Model model;
  std::uint64_t block_bytes = 0;
  std::size_t device = DeviceSet::kHost;  // of the client's DeviceSet
  std::shared_ptr<MemoryBackend> backend;
  std::shared_ptr<LocalMemory> memory;
  OwnedMemory generation_memory;
  GenerationWriter generations;
  std::shared_ptr<PeerMapping> own_mapping;  // so that this process imports from it like from any other
  const std::shared_ptr<StreamPublishes> stream_publishes = std::make_shared<StreamPublishes>();
  std::weak_ptr<Client::Impl> client;

  std::mutex mutex;                    // everything below
  std::vector<PublishRecord> records;  // [block_count]: last publish of each block; generation 0: none
  std::uint32_t republish_from = 0;    // records from here on are not all sent yet; block_count: all are
  bool republish_again = false;        // something before republish_from was deferred meanwhile
  bool registering = false;            // a request is under way; whoever else wants one waits for it
  std::vector<Reply> registration_waiters;
  bool registered = false;
  bool known_to_kvmd = false;  // has been registered at some time, so importers may have it mapped
  bool closed = false;         // its blocks have ended, and the memory may be its engine's again
  unsigned reading = 0;        // publishes that read the memory, for checksums
  std::condition_variable read;
  std::uint32_t row = 0, region_epoch = 0;
  Error refusal;  // kvmd's, of the last registration

  // Allocates the region's memory on a device of the client's. `grant`: what asks kvmd for memory.
  [[nodiscard]] static Result<std::shared_ptr<Impl>> Allocate(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                              std::size_t device, const GrantMemory& grant);
  // Makes a region of memory that the caller has.
  [[nodiscard]] static Result<std::shared_ptr<Impl>> Register(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                              std::size_t device, std::span<const DeviceRange> segments,
                                                              const GrantMemory& grant);
  // Goes on with a dead owner's region. `fds`: of kvmd's reply; the records are consumed from them, too.
  [[nodiscard]] static Result<std::shared_ptr<Impl>> Adopt(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                           std::size_t device, const kvmwire::AdoptRegionReply& reply, Fds fds);

  // Fills in what AllocateRegion's options may leave out, and checks them.
  [[nodiscard]] static Status Complete(RegionOptions& options);
  // What a region of these options looks like, without kind and handles.
  static kvmwire::RegionDescriptor Expected(const Model& model, const RegionOptions& options);
  kvmwire::RegionDescriptor Descriptor() const;
  FileId Identity() const;
  // Without checksums an empty list; an error: they could not be computed, or the region is closed, and nothing may be
  // published.
  Result<std::vector<std::uint64_t>> Checksums(std::span<const PublishRequest> requests);
  PublishOutcome Publish(std::span<const PublishRequest> requests);
  // The end of ownership (I10): no block is readable or can become so, whatever is under way. One atomic operation each.
  void End() noexcept { generations.EndAll(); }
  // Marks it as closed and waits until no publish reads its memory, or until `deadline`.
  void Close(Deadline deadline);
  Status PublishOnStream(std::span<const PublishRequest> requests, StreamHandle stream);
  // To the host cache, if this region offers what it publishes.
  void OfferPublished(Client::Impl& owner, std::span<const PublishRecord> batch);
  // Offers published blocks, whatever the host cache asks for; how many. `wait` (may be null): with precedence.
  std::size_t Offload(std::span<const std::uint32_t> blocks, const std::shared_ptr<OffloadWait>& wait);
  // Sends deferred records while the window allows; true if none are left. Mutex held.
  bool PumpLocked(Client::Impl& owner);

 private:
  [[nodiscard]] static Result<std::shared_ptr<Impl>> Make(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                          std::size_t device, std::shared_ptr<LocalMemory> memory, OwnedMemory generations);
  Result<std::shared_ptr<PeerMapping>> MapOwn(std::size_t devices) const;
};

}  // namespace kvm
