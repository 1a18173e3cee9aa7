#include "cuda/import/import_contexts.h"

#include <algorithm>
#include <bit>
#include <map>
#include <utility>

namespace kvm {
namespace {

constexpr std::size_t kSlotsAhead = 4, kMinBlocks = std::size_t{64} << 10, kMinTableBytes = std::size_t{512} << 10;

// Contexts of backends that have ended, for the next backend of the same GPU. Freeing their memory
// would wait for all streams of this process, also for one that a caller's action follows and that
// stands still.
class SpareContexts {
 public:
  static SpareContexts& Get() {
    static auto* const spare = new SpareContexts;  // never destroyed: CUDA may have gone by then
    return *spare;
  }

  // One of the GPU's, else a new one.
  std::unique_ptr<ImportContext> Take(const std::shared_ptr<const CudaDevice>& device) {
    MutexLock lock(mutex_);
    std::vector<std::unique_ptr<ImportContext>>& spare = of_device_[device->uuid()];
    if (spare.empty()) return std::make_unique<ImportContext>(device);
    std::unique_ptr<ImportContext> taken = std::move(spare.back());
    spare.pop_back();
    return taken;
  }

  void Put(const DeviceUuid& device, std::vector<std::unique_ptr<ImportContext>> contexts) {
    MutexLock lock(mutex_);
    for (std::unique_ptr<ImportContext>& context : contexts) of_device_[device].push_back(std::move(context));
  }

 private:
  Mutex mutex_;
  std::map<DeviceUuid, std::vector<std::unique_ptr<ImportContext>>> of_device_ KVM_GUARDED_BY(mutex_);
};

}  // namespace

ImportContext::~ImportContext() {
  const DeviceGuard guard(*device_);
  for (const cudaEvent_t event : {event_, copied_, uploaded_}) {
    if (event != nullptr) static_cast<void>(cudaEventDestroy(event));
  }
  for (const cudaStream_t stream : {stream_, validation_stream_, upload_stream_}) {
    if (stream != nullptr) static_cast<void>(cudaStreamDestroy(stream));
  }
  if (pinned_ != nullptr) static_cast<void>(cudaFreeHost(pinned_));
  if (staged_ != nullptr) static_cast<void>(cudaFreeHost(staged_));
  if (table_ != nullptr) static_cast<void>(cudaFree(table_));
  if (arrivals_ != nullptr) static_cast<void>(cudaFree(arrivals_));
  for (void* memory : retired_host_) static_cast<void>(cudaFreeHost(memory));
  for (void* memory : retired_device_) static_cast<void>(cudaFree(memory));
  static_cast<void>(cudaGetLastError());
}

Status ImportContext::Make() {
  int lowest = 0, highest = 0;
  cudaError_t error = cudaDeviceGetStreamPriorityRange(&lowest, &highest);
  if (error == cudaSuccess) error = cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest);
  if (error == cudaSuccess) error = cudaStreamCreateWithPriority(&validation_stream_, cudaStreamNonBlocking, highest);
  if (error == cudaSuccess) error = cudaStreamCreateWithPriority(&upload_stream_, cudaStreamNonBlocking, highest);
  for (cudaEvent_t* event : {&event_, &copied_, &uploaded_}) {
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(event, cudaEventDisableTiming);
  }
  if (error == cudaSuccess) error = cudaMalloc(reinterpret_cast<void**>(&arrivals_), 256);
  if (error == cudaSuccess) error = cudaMemsetAsync(arrivals_, 0, 256, stream_);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream_);
  return CudaStatus(error, "making an import slot");
}

Status ImportContext::Reserve(std::size_t blocks, std::size_t table_bytes) {
  if (arrivals_ != nullptr && blocks <= blocks_ && table_bytes <= table_bytes_) return {};
  const DeviceGuard guard(*device_);
  if (arrivals_ == nullptr) {
    if (Status made = Make(); !made) return made;
  }
  if (blocks > blocks_) {
    if (pinned_ != nullptr) retired_host_.push_back(std::exchange(pinned_, nullptr));
    blocks_ = 0;
    const std::size_t room = std::bit_ceil(std::max(blocks, kMinBlocks));
    const unsigned flags = cudaHostAllocPortable | cudaHostAllocMapped;
    if (const cudaError_t error = cudaHostAlloc(reinterpret_cast<void**>(&pinned_), kLine + room, flags); error != cudaSuccess) {
      pinned_ = nullptr;
      return CudaError(error, "host memory of an import slot");
    }
    blocks_ = room;
    *done() = 0;
  }
  if (table_bytes > table_bytes_) {
    if (table_ != nullptr) retired_device_.push_back(std::exchange(table_, nullptr));
    if (staged_ != nullptr) retired_host_.push_back(std::exchange(staged_, nullptr));
    table_bytes_ = 0;
    const std::size_t room = std::bit_ceil(std::max(table_bytes, kMinTableBytes));
    cudaError_t error = cudaMalloc(&table_, room);
    if (error == cudaSuccess) error = cudaHostAlloc(reinterpret_cast<void**>(&staged_), room, cudaHostAllocPortable);
    if (error != cudaSuccess) return CudaError(error, "table of an import slot");
    table_bytes_ = room;
  }
  return {};
}

ImportContexts::ImportContexts(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {
  for (std::size_t i = 0; i < kSlotsAhead; ++i) {
    std::unique_ptr<ImportContext> slot = SpareContexts::Get().Take(device_);
    if (!slot->Reserve(kMinBlocks, kMinTableBytes)) break;
    free_.push_back(std::move(slot));
  }
}

ImportContexts::~ImportContexts() {
  SpareContexts::Get().Put(device_->uuid(), std::move(free_));
  if (background_ == nullptr) return;
  const DeviceGuard guard(*device_);
  static_cast<void>(cudaStreamSynchronize(background_));
  static_cast<void>(cudaStreamDestroy(background_));
  static_cast<void>(cudaGetLastError());
}

Result<cudaStream_t> ImportContexts::BackgroundStream() {
  MutexLock lock(mutex_);
  if (background_ != nullptr) return background_;
  const DeviceGuard guard(*device_);
  int least = 0, greatest = 0;
  cudaError_t error = cudaDeviceGetStreamPriorityRange(&least, &greatest);
  if (error == cudaSuccess) error = cudaStreamCreateWithPriority(&background_, cudaStreamNonBlocking, least);
  if (error != cudaSuccess) return CudaError(error, "making a stream of low priority");
  return background_;
}

Result<std::unique_ptr<ImportContext>> ImportContexts::Take() {
  std::unique_ptr<ImportContext> slot;
  {
    MutexLock lock(mutex_);
    if (taken_ >= kMaxSlots) return MakeError(Errc::kResourceExhausted, "too many imports under way at once");
    ++taken_;
    if (!free_.empty()) {
      slot = std::move(free_.back());
      free_.pop_back();
      return slot;
    }
  }
  slot = SpareContexts::Get().Take(device_);
  if (Status made = slot->Reserve(kMinBlocks, 0); !made) {
    Return(std::move(slot), false);
    return made.error();
  }
  return slot;
}

void ImportContexts::Return(std::unique_ptr<ImportContext> slot, bool usable) {
  std::unique_ptr<ImportContext> dropped;
  MutexLock lock(mutex_);
  --taken_;
  if (usable) {
    free_.push_back(std::move(slot));
  } else {
    dropped = std::move(slot);
  }
}

}  // namespace kvm
