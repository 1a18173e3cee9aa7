#include "cuda/memory/ipc_memory.h"

#include <sys/random.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <utility>

#include "cuda/host/checksum.h"
#include "proto/base/thread_safety.h"

namespace kvm {
namespace {

static_assert(sizeof(cudaIpcMemHandle_t) == 64);

std::string Bytes(const cudaIpcMemHandle_t& handle) { return {handle.reserved, sizeof(handle.reserved)}; }

// An allocation by address.
struct Allocation {
  std::byte* base = nullptr;
  std::uint64_t bytes = 0;
};

Result<Allocation> AllocationOf(const CudaDevice& device, const void* pointer) {
  CUdeviceptr base = 0;
  std::size_t bytes = 0;
  const CUresult error = device.driver().MemGetAddressRange(&base, &bytes, reinterpret_cast<CUdeviceptr>(pointer));
  if (error != CUDA_SUCCESS) return CudaError(error, "cuMemGetAddressRange");
  return Allocation{reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(base)), bytes};
}

// Allocations of this process that are exported, by handle, with a count of users. Never destroyed,
// since memory objects may outlive static destruction.
class OwnExports {
 public:
  static OwnExports& Get() {
    static OwnExports& exports = *new OwnExports();
    return exports;
  }
  std::shared_ptr<const void> Add(const std::string& handle, const Allocation& allocation) {
    MutexLock lock(mutex_);
    Entry& entry = entries_[handle];
    entry.allocation = allocation;
    ++entry.users;
    return std::shared_ptr<const void>(allocation.base, [handle](const void*) { Get().Drop(handle); });
  }
  Result<Allocation> Find(const std::string& handle) {
    MutexLock lock(mutex_);
    const auto found = entries_.find(handle);
    if (found == entries_.end()) return MakeError(Errc::kNotFound, "not exported by this process");
    return found->second.allocation;
  }

 private:
  struct Entry {
    Allocation allocation;
    std::size_t users = 0;
  };
  void Drop(const std::string& handle) {
    MutexLock lock(mutex_);
    const auto found = entries_.find(handle);
    if (found != entries_.end() && --found->second.users == 0) entries_.erase(found);
  }
  Mutex mutex_;
  std::map<std::string, Entry> entries_ KVM_GUARDED_BY(mutex_);
};

// Peers' allocations opened in this process, by importing GPU and handle. Opening and closing
// happen under the lock, so that one handle is never opened while it is being closed.
class OpenedHandles {
 public:
  static OpenedHandles& Get() {
    static OpenedHandles& opened = *new OpenedHandles();
    return opened;
  }

  Result<std::shared_ptr<const Allocation>> Open(const std::shared_ptr<const CudaDevice>& device, const std::string& handle,
                                                 std::uint64_t identity) {
    const Key key{device->ordinal(), handle};
    MutexLock lock(mutex_);
    Entry& entry = entries_[key];
    if (entry.users > 0 && entry.identity != identity) {
      return MakeError(Errc::kUnavailable, "an older allocation with the same handle is still mapped");
    }
    if (entry.users == 0) {
      entry.identity = identity;
      cudaIpcMemHandle_t raw;
      std::memcpy(raw.reserved, handle.data(), sizeof(raw.reserved));
      void* base = nullptr;
      if (const cudaError_t error = cudaIpcOpenMemHandle(&base, raw, cudaIpcMemLazyEnablePeerAccess); error != cudaSuccess) {
        entries_.erase(key);
        return CudaError(error, "cudaIpcOpenMemHandle");
      }
      Result<Allocation> allocation = AllocationOf(*device, base);
      if (!allocation) {
        static_cast<void>(cudaIpcCloseMemHandle(base));
        entries_.erase(key);
        return allocation.error();
      }
      entry.opened = base;
      entry.allocation = *allocation;
    }
    ++entry.users;
    return std::shared_ptr<const Allocation>(&entry.allocation, [device, key](const Allocation*) { Get().Close(*device, key); });
  }

 private:
  using Key = std::pair<int, std::string>;
  struct Entry {
    void* opened = nullptr;
    Allocation allocation;
    std::uint64_t identity = 0;
    std::size_t users = 0;
  };
  void Close(const CudaDevice& device, const Key& key) {
    const DeviceGuard guard(device);
    MutexLock lock(mutex_);
    const auto found = entries_.find(key);
    if (found == entries_.end() || --found->second.users > 0) return;
    static_cast<void>(cudaIpcCloseMemHandle(found->second.opened));
    static_cast<void>(cudaGetLastError());
    entries_.erase(found);
  }
  Mutex mutex_;
  // node-based, so that entries keep their addresses
  std::map<Key, Entry> entries_ KVM_GUARDED_BY(mutex_);
};

// A number that no other allocation on this machine has or had: CUDA's number of the allocation
// within the process, mixed with a random number of the process.
Result<std::uint64_t> IdentityOf(const CudaDevice& device, const std::byte* base) {
  static const std::uint64_t process = [] {
    std::uint64_t random = 0;
    return ::getrandom(&random, sizeof(random), 0) == sizeof(random) ? random : static_cast<std::uint64_t>(::getpid());
  }();
  std::uint64_t number = 0;
  const CUresult error = device.driver().PointerGetAttribute(&number, CU_POINTER_ATTRIBUTE_BUFFER_ID, reinterpret_cast<CUdeviceptr>(base));
  if (error != CUDA_SUCCESS) return CudaError(error, "cuPointerGetAttribute(BUFFER_ID)");
  return ChecksumWord(process, number);
}

Status CheckExportable(const CudaDevice& device, const void* pointer) {
  const auto address = reinterpret_cast<CUdeviceptr>(pointer);
  int ordinal = -1;
  CUresult error = device.driver().PointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address);
  if (error != CUDA_SUCCESS) {
    return MakeError(Errc::kInvalidArgument, "not device memory: " + CudaError(error, "cuPointerGetAttribute(DEVICE_ORDINAL)").message);
  }
  if (ordinal != device.ordinal())
    return MakeError(Errc::kInvalidArgument, "memory of GPU " + std::to_string(ordinal) + " registered with another GPU");
  int capable = 0;
  error = device.driver().PointerGetAttribute(&capable, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, address);
  if (error != CUDA_SUCCESS) return CudaError(error, "cuPointerGetAttribute(IS_LEGACY_CUDA_IPC_CAPABLE)");
  if (capable == 0) {
    return MakeError(Errc::kUnsupported,
                     "this memory can't be exported, since cudaMalloc did not make it (a stream-ordered pool, managed memory, or PyTorch's "
                     "expandable segments): let libkvclient allocate the region or, by AllocateExportable (kvclient.torch.mem_pool), the "
                     "memory; or set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False");
  }
  return {};
}

Status CheckInside(const DeviceRange& range, const Allocation& allocation) {
  const std::uint64_t offset = static_cast<std::uint64_t>(static_cast<std::byte*>(range.data) - allocation.base);
  if (range.size_bytes == 0 || offset > allocation.bytes || range.size_bytes > allocation.bytes - offset) {
    return MakeError(Errc::kInvalidArgument, std::to_string(range.size_bytes) + " bytes at offset " + std::to_string(offset) +
                                                 " leave their allocation of " + std::to_string(allocation.bytes));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<CudaLocalMemory>> RegisterIpc(const std::shared_ptr<const CudaDevice>& device, std::span<const DeviceRange> ranges) {
  const DeviceGuard guard(*device);
  auto memory = std::make_unique<CudaLocalMemory>(device, layout::HandleKind::kCudaIpc);
  struct Export {
    std::string handle;
    std::uint64_t identity = 0;
  };
  std::map<const std::byte*, Export> known;  // one handle per allocation, by its base
  for (const DeviceRange& range : ranges) {
    // Checked first, since memory that can't be exported may consist of many small allocations.
    if (Status exportable = CheckExportable(*device, range.data); !exportable) return exportable.error();
    const Result<Allocation> allocation = AllocationOf(*device, range.data);
    if (!allocation) return MakeError(Errc::kInvalidArgument, "not device memory: " + allocation.error().message);
    if (Status inside = CheckInside(range, *allocation); !inside) return inside.error();
    Export& exported = known[allocation->base];
    if (exported.handle.empty()) {
      cudaIpcMemHandle_t raw;
      if (const cudaError_t error = cudaIpcGetMemHandle(&raw, allocation->base); error != cudaSuccess)
        return CudaError(error, "cudaIpcGetMemHandle");
      exported.handle = Bytes(raw);
      const Result<std::uint64_t> identity = IdentityOf(*device, allocation->base);
      if (!identity) return identity.error();
      exported.identity = *identity;
    }
    SegmentHandle handle;
    handle.size_bytes = range.size_bytes;
    handle.handle = exported.handle;
    handle.allocation = exported.identity;
    handle.handle_offset = static_cast<std::uint64_t>(static_cast<std::byte*>(range.data) - allocation->base);
    memory->Add(std::move(handle), static_cast<std::byte*>(range.data), OwnExports::Get().Add(exported.handle, *allocation));
  }
  return memory;
}

Result<PeerSegment> MapIpc(const std::shared_ptr<const CudaDevice>& device, const SegmentHandle& segment) {
  if (segment.handle.size() != sizeof(cudaIpcMemHandle_t)) {
    return MakeError(Errc::kInvalidArgument, "a cuda_ipc handle has 64 bytes, this one " + std::to_string(segment.handle.size()));
  }
  const DeviceGuard guard(*device);
  Allocation allocation;
  PeerSegment peer;
  if (const Result<Allocation> own = OwnExports::Get().Find(segment.handle); own) {
    allocation = *own;
  } else {
    Result<std::shared_ptr<const Allocation>> opened = OpenedHandles::Get().Open(device, segment.handle, segment.allocation);
    if (!opened) return opened.error();
    allocation = **opened;
    peer.owner = std::move(*opened);
  }
  if (segment.size_bytes == 0 || segment.handle_offset > allocation.bytes ||
      segment.size_bytes > allocation.bytes - segment.handle_offset) {
    return MakeError(Errc::kInvalidArgument, "bytes " + std::to_string(segment.handle_offset) + "+" + std::to_string(segment.size_bytes) +
                                                 " leave the exported allocation of " + std::to_string(allocation.bytes));
  }
  peer.base = allocation.base + segment.handle_offset;
  peer.detail = "mapped read-write: CUDA IPC handles have no read-only form";
  return peer;
}

}  // namespace kvm
