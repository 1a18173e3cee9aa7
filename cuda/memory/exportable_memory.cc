#include "cuda/memory/exportable_memory.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cuda/memory/allocation_table.h"
#include "cuda/memory/vmm_mapping.h"
#include "kvm/exportable_memory.h"
#include "proto/base/thread_safety.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {
namespace {

using Table = AllocationTable<VmmMapping>;

// Never destroyed: allocators free from static destructors.
Table& Allocations() {
  static Table& table = *new Table();
  return table;
}

// GPUs stay open once they have been used, since opening one takes some 100 ms.
Result<std::shared_ptr<const CudaDevice>> OpenOnce(const DeviceUuid& uuid) {
  struct Opened {
    Mutex mutex;
    std::map<DeviceUuid, std::shared_ptr<const CudaDevice>> devices KVM_GUARDED_BY(mutex);
  };
  static Opened& all = *new Opened();
  MutexLock lock(all.mutex);
  if (const auto found = all.devices.find(uuid); found != all.devices.end()) return found->second;
  Result<std::shared_ptr<const CudaDevice>> opened = CudaDevice::Open(uuid);
  if (opened) all.devices[uuid] = *opened;
  return opened;
}

// An engine may allocate while one of its threads captures a graph. This code does not use the
// captured stream, so its calls are allowed in the relaxed mode.
class RelaxedCapture {
 public:
  RelaxedCapture() { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~RelaxedCapture() { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

Result<void*> AllocateExportable(const DeviceUuid& device, std::uint64_t size_bytes) {
  const Result<std::shared_ptr<const CudaDevice>> opened = OpenOnce(device);
  if (!opened) return opened.error();
  const DeviceGuard guard(**opened);
  const RelaxedCapture relaxed;
  Result<std::shared_ptr<VmmMapping>> mapping = VmmMapping::Make(*opened, size_bytes);
  if (!mapping) return mapping.error();
  void* data = (*mapping)->data();
  Allocations().Add(data, size_bytes, std::move(*mapping));
  return data;
}

Status FreeExportable(void* address) {
  const std::shared_ptr<VmmMapping> mapping = Allocations().Take(address);
  if (!mapping) return MakeError(Errc::kNotFound, "not the address of exportable memory, or freed already");
  // Unmapping does not wait, and work that is queued on the GPU may still use the memory.
  const DeviceGuard guard(mapping->device());
  const RelaxedCapture relaxed;
  return CudaStatus(cudaDeviceSynchronize(), "cudaDeviceSynchronize before freeing memory");
}

ExportableUsage ExportableInUse() { return {Allocations().size(), Allocations().bytes()}; }

Result<std::optional<std::unique_ptr<CudaLocalMemory>>> RegisterExportable(const std::shared_ptr<const CudaDevice>& device,
                                                                           std::span<const DeviceRange> ranges) {
  std::vector<Table::Place> places;
  for (const DeviceRange& range : ranges) {
    Result<std::optional<Table::Place>> place = Allocations().Find(range);
    if (!place) return place.error();
    if (*place) places.push_back(std::move(**place));
  }
  if (places.empty()) return std::optional<std::unique_ptr<CudaLocalMemory>>();
  if (places.size() != ranges.size()) {
    return MakeError(Errc::kInvalidArgument,
                     std::to_string(places.size()) + " of " + std::to_string(ranges.size()) +
                         " segments are exportable memory of libkvclient, the others are not: a region has one kind");
  }
  if (places.size() > kMaxSegments) {
    return MakeError(Errc::kBadGeometry, std::to_string(places.size()) + " segments of exportable memory, each of which travels as a " +
                                             "descriptor; the limit is " + std::to_string(kMaxSegments) +
                                             ": let several tensors be views of one allocation");
  }
  const DeviceGuard guard(*device);
  auto memory = std::make_unique<CudaLocalMemory>(device, layout::HandleKind::kCudaVmmFd);
  for (std::size_t i = 0; i < places.size(); ++i) {
    Table::Place& place = places[i];
    if (place.owner->device().ordinal() != device->ordinal()) {
      return MakeError(Errc::kInvalidArgument,
                       "memory of GPU " + std::to_string(place.owner->device().ordinal()) + " registered with another GPU");
    }
    Result<UniqueFd> fd = place.owner->Export();
    if (!fd) return fd.error();
    SegmentHandle handle;
    handle.size_bytes = ranges[i].size_bytes;
    handle.handle_offset = place.offset;
    handle.allocation_bytes = place.owner->bytes();
    handle.fd = std::move(*fd);
    memory->Add(std::move(handle), static_cast<std::byte*>(ranges[i].data), std::move(place.owner));
  }
  return std::optional(std::move(memory));
}

}  // namespace kvm
