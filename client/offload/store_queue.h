// StoreQueue: the interface between the offloader's queue and BlockStorer, which copies blocks from
// it.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "client/offload/offload_source.h"
#include "client/offload/offload_wait.h"
#include "client/peers/device_set.h"
#include "proto/base/unique_fd.h"
#include "proto/wire/publish_record.h"

namespace kvm {

// A published block that waits to be offered to the host cache.
struct OffloadItem {
  std::weak_ptr<OffloadSource> source;
  PublishRecord record;
  // The caller of Region::Offload named the block, rather than the host cache's admission
  bool asked = false;
  std::shared_ptr<OffloadWait> wait;  // null: no caller waits
  // Counted, and `wait` has been told; or another item stands for the block
  bool ended = false;
};

// Memory of kvmd that this client may write, mapped for each device when it is first written.
// `withdrawn` is called once it is unmapped.
struct GrantedSlab {
  GrantedSlab() = default;
  ~GrantedSlab();
  GrantedSlab(const GrantedSlab&) = delete;
  GrantedSlab& operator=(const GrantedSlab&) = delete;

  UniqueFd fd;
  std::uint64_t size_bytes = 0, slot_bytes = 0;
  std::uint32_t slots = 0;
  // By device; used by the offloader's thread only
  std::array<std::shared_ptr<LocalMemory>, DeviceSet::kMax> memories;
  std::function<void()> withdrawn;
};

// The queue, as the thread that works on a batch uses it. Thread-safe.
class StoreQueue {
 public:
  // False: the source is being closed, and its memory must not be read any more. Every BeginCopy
  // that returned true is followed by an EndCopy.
  virtual bool BeginCopy() = 0;
  virtual void EndCopy() noexcept = 0;
  // Null if kvmd has withdrawn the slab, or never granted it.
  virtual std::shared_ptr<GrantedSlab> SlabAt(const RegionRow& row) = 0;
  // Whether a grant was lost since the last call, so that kvmd is asked to send it again.
  virtual bool TakeGrantsLost() = 0;
  // Counts the items that have not ended as dropped, and ends the waits of callers for them.
  virtual void Drop(std::span<OffloadItem> items) noexcept = 0;
  // Puts the items at the front of the queue.
  virtual void QueueAgain(std::span<const OffloadItem> items) = 0;

 protected:
  ~StoreQueue() = default;
};

}  // namespace kvm
