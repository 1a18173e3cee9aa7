// Copies published blocks to kvmd's host cache, behind the back of those who publish.
//
// A thread of its own offers queued blocks to kvmd in batches, copies those that are granted a slot, and says which
// copies are complete and of blocks that had not been reused until they were: the same two looks at the generation as
// for any import. It waits for kvmd and for copies; whoever queues never does. A bounded queue: what has no room is
// dropped and counted.
//
// Slabs (memory of kvmd's that this client may write) are mapped when they are first written, and unmapped when kvmd
// withdraws them or the connection ends; a copy under way ends first.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "client/connection/link.h"
#include "client/peers/device_set.h"
#include "kvclient/region.h"
#include "proto/wire/publish_record.h"

namespace kvm {

struct AtomicStats;

// Blocks that somebody waits for. Thread-safe.
class OffloadWait {
 public:
  void Begin(std::size_t blocks);
  void End(bool held);
  // How many ended as held. kDeadlineExceeded: not all have ended.
  [[nodiscard]] Result<std::size_t> Wait(Deadline deadline);

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  std::size_t open_ = 0, held_ = 0;
};

// Thread-safe. Connected, Disconnected, Granted and Withdraw are called on the link's thread.
class Offloader {
 public:
  Offloader(Link& link, AtomicStats& stats, std::size_t max_queued) : link_(link), stats_(stats), max_queued_(max_queued) {}
  ~Offloader() { Stop(); }
  Offloader(const Offloader&) = delete;
  Offloader& operator=(const Offloader&) = delete;

  void Connected(const kvmwire::HelloReply& hello);
  void Disconnected();
  void Granted(const kvmwire::SlabGrant& grant, Result<Fds> fds);
  // Lets go of a slab, then runs `then`: at once if this client has none with that row and epoch.
  void Withdraw(std::uint32_t row, std::uint32_t region_epoch, std::function<void()> then);
  void Stop();

  // Whether kvmd asks for what is published.
  bool WantsPublished() const;
  // How many were queued. `wait`: they go first, and are begun and ended there.
  std::size_t Offer(const std::shared_ptr<Region::Impl>& region, std::span<const PublishRecord> records, bool asked,
                    const std::shared_ptr<OffloadWait>& wait);
  // Nothing of this region is read any more on return, or at the deadline.
  void Forget(const Region::Impl& region, Deadline deadline);

 private:
  struct Slab {
    ~Slab();
    UniqueFd fd;
    std::uint64_t size_bytes = 0, slot_bytes = 0;
    std::uint32_t slots = 0;
    std::array<std::shared_ptr<LocalMemory>, DeviceSet::kMax> memories;  // by device; the thread's only
    std::function<void()> withdrawn;
  };
  struct Item {
    std::weak_ptr<Region::Impl> region;
    PublishRecord record;
    bool asked = false;
    std::shared_ptr<OffloadWait> wait;
  };
  using Batch = std::vector<Item>;
  using ChunkKey = std::pair<std::uint32_t, std::uint32_t>;  // row, region epoch

  // offloader.cc
  void Run();
  Batch TakeBatchLocked();
  void DropLocked(const Item& item);
  void Drop(std::span<const Item> items);
  // offloading.cc
  void Process(const std::shared_ptr<Region::Impl>& region, Batch batch);
  void Store(const std::shared_ptr<Region::Impl>& region, std::span<const Item> offered, const kvmwire::PrepareStoreReply& reply);
  // Whether each block arrived whole; those behind a failed one are queued again.
  void Copy(Region::Impl& region, std::span<const Item> offered, std::span<const kvmwire::StoreGrant* const> grants,
            kvmwire::CompleteStore& done);
  std::shared_ptr<LocalMemory> MemoryFor(Slab& slab, const Region::Impl& region);
  bool BeginCopy(const Region::Impl& region);
  void EndCopy();

  Link& link_;
  AtomicStats& stats_;
  const std::size_t max_queued_;

  mutable std::mutex mutex_;  // everything below
  std::condition_variable changed_;
  bool stopped_ = false;
  bool connected_ = false;  // to a kvmd that has a host cache
  bool wants_published_ = false;
  std::deque<Item> queue_;
  std::map<ChunkKey, std::shared_ptr<Slab>> slabs_;
  bool grants_lost_ = false;                    // there was no descriptor left for a slab's: kvmd is to send it again
  std::vector<std::shared_ptr<Slab>> retired_;  // for the thread to let go of
  const Region::Impl* offering_ = nullptr;      // whose blocks the thread is at work on
  const Region::Impl* copying_ = nullptr;
  bool forget_ = false;  // `offering_` is to be left
  std::thread thread_;
};

}  // namespace kvm
