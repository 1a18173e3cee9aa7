#include "cuda/import/checksum_context.h"

#include <algorithm>
#include <bit>
#include <map>
#include <utility>

#include "proto/base/thread_safety.h"

namespace kvm {
namespace {

constexpr std::size_t kFewestBytes = std::size_t{64} << 10;

// Never destroyed, since CUDA may have gone by then.
struct Kept {
  static Kept& Get() {
    static auto* const kept = new Kept;
    return *kept;
  }

  Mutex mutex;
  std::map<DeviceUuid, std::vector<std::unique_ptr<ChecksumContext>>> contexts KVM_GUARDED_BY(mutex);
  std::map<DeviceUuid, std::shared_ptr<const CudaDevice>> devices KVM_GUARDED_BY(mutex);
};

}  // namespace

Result<std::unique_ptr<ChecksumContext>> ChecksumContext::Take(const std::shared_ptr<const CudaDevice>& device) {
  Kept& kept = Kept::Get();
  {
    MutexLock lock(kept.mutex);
    std::vector<std::unique_ptr<ChecksumContext>>& free = kept.contexts[device->uuid()];
    if (!free.empty()) {
      std::unique_ptr<ChecksumContext> taken = std::move(free.back());
      free.pop_back();
      return taken;
    }
  }
  auto made = std::make_unique<ChecksumContext>(device);
  const DeviceGuard guard(*device);
  const cudaError_t error = cudaStreamCreateWithFlags(&made->stream_, cudaStreamNonBlocking);
  if (error != cudaSuccess) return CudaError(error, "checksum: stream");
  return made;
}

void ChecksumContext::Return(std::unique_ptr<ChecksumContext> context) {
  Kept& kept = Kept::Get();
  MutexLock lock(kept.mutex);
  kept.contexts[context->device_->uuid()].push_back(std::move(context));
}

ChecksumContext::~ChecksumContext() {
  const DeviceGuard guard(*device_);
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
  retired_host_.push_back(host_);
  retired_gpu_.push_back(gpu_);
  for (std::byte* memory : retired_host_) static_cast<void>(cudaFreeHost(memory));
  for (std::byte* memory : retired_gpu_) static_cast<void>(cudaFree(memory));
  static_cast<void>(cudaGetLastError());
}

Status ChecksumContext::Reserve(std::size_t bytes) {
  if (bytes <= bytes_) return {};
  if (host_ != nullptr) retired_host_.push_back(std::exchange(host_, nullptr));
  if (gpu_ != nullptr) retired_gpu_.push_back(std::exchange(gpu_, nullptr));
  bytes_ = 0;
  const std::size_t room = std::bit_ceil(std::max(bytes, kFewestBytes));
  const DeviceGuard guard(*device_);
  cudaError_t error = cudaHostAlloc(reinterpret_cast<void**>(&host_), room, cudaHostAllocPortable);
  if (error == cudaSuccess) error = cudaMalloc(reinterpret_cast<void**>(&gpu_), room);
  if (error != cudaSuccess) return CudaError(error, "checksum: memory for its lists");
  bytes_ = room;
  return {};
}

Result<std::shared_ptr<const CudaDevice>> OpenForChecksums(const DeviceUuid& uuid) {
  Kept& kept = Kept::Get();
  MutexLock lock(kept.mutex);
  const auto known = kept.devices.find(uuid);
  if (known != kept.devices.end()) return known->second;
  Result<std::shared_ptr<const CudaDevice>> opened = CudaDevice::Open(uuid);
  if (opened) kept.devices.emplace(uuid, *opened);
  return opened;
}

}  // namespace kvm
