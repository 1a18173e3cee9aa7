// What the offloader's queue and the code that copies blocks from it tell each other.
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
  bool asked = false;                 // by the caller of Region::Offload, not by the host cache's admission
  std::shared_ptr<OffloadWait> wait;  // null: nobody waits
};

// Memory of kvmd's that this client may write, mapped for each device when it is first written.
// `withdrawn` runs once it is unmapped.
struct GrantedSlab {
  GrantedSlab() = default;
  ~GrantedSlab();
  GrantedSlab(const GrantedSlab&) = delete;
  GrantedSlab& operator=(const GrantedSlab&) = delete;

  UniqueFd fd;
  std::uint64_t size_bytes = 0, slot_bytes = 0;
  std::uint32_t slots = 0;
  std::array<std::shared_ptr<LocalMemory>, DeviceSet::kMax> memories;  // by device; the offloader's thread's only
  std::function<void()> withdrawn;
};

// The queue as the thread sees it that works on a batch. Thread-safe.
class StoreQueue {
 public:
  // False: the source is to be left, nothing of it may be read any more. Each that began is ended.
  virtual bool BeginCopy() = 0;
  virtual void EndCopy() = 0;
  // Null: kvmd has withdrawn it, or never granted it.
  virtual std::shared_ptr<GrantedSlab> SlabAt(const RegionRow& row) = 0;
  // Whether a grant was lost since the last call, so that kvmd is to send it again.
  virtual bool TakeGrantsLost() = 0;
  // Counts them as dropped, and ends the waits of callers for them.
  virtual void Drop(std::span<const OffloadItem> items) = 0;
  // To the front of the queue.
  virtual void QueueAgain(std::vector<OffloadItem> items) = 0;

 protected:
  ~StoreQueue() = default;
};

}  // namespace kvm
