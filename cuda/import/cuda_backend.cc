// The data plane of one GPU behind MemoryBackend. Thread-safe: every object it keeps is.
#include <algorithm>
#include <utility>

#include "cuda/devices.h"
#include "cuda/import/cuda_checksum.h"
#include "cuda/import/cuda_import.h"
#include "cuda/memory/device_memory.h"
#include "cuda/memory/exportable_memory.h"
#include "cuda/memory/ipc_memory.h"
#include "cuda/memory/registered_memory.h"
#include "cuda/memory/vmm_memory.h"
#include "cuda/topology/topology.h"
#include "proto/base/fault_switch.h"
#include "proto/base/thread_safety.h"

namespace kvm {
namespace {

using layout::HandleKind;

// Follows callers' streams without holding them up: an event of theirs, waited for by a stream of
// ours that runs the action. An event may be recorded again as soon as a wait for it has been
// queued.
class StreamFollower {
 public:
  explicit StreamFollower(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {}
  // Actions that wait for a caller's stream still run when the stream reaches them; CUDA destroys
  // their streams and events afterwards.
  ~StreamFollower() {
    const DeviceGuard guard(*device_);
    if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
    if (event_ != nullptr) static_cast<void>(cudaEventDestroy(event_));
    static_cast<void>(cudaGetLastError());
  }
  StreamFollower(const StreamFollower&) = delete;
  StreamFollower& operator=(const StreamFollower&) = delete;

  Status RunAfter(StreamHandle stream, std::function<void()> action) {
    const DeviceGuard guard(*device_);
    MutexLock lock(mutex_);
    cudaError_t error = cudaSuccess;
    if (stream_ == nullptr) error = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
    if (error == cudaSuccess && event_ == nullptr) error = cudaEventCreateWithFlags(&event_, cudaEventDisableTiming);
    if (error == cudaSuccess) error = cudaEventRecord(event_, reinterpret_cast<cudaStream_t>(stream.value));
    if (error == cudaSuccess) error = cudaStreamWaitEvent(stream_, event_, 0);
    if (error != cudaSuccess) return CudaError(error, "following a stream");
    auto held = std::make_unique<std::function<void()>>(std::move(action));
    error = cudaLaunchHostFunc(stream_, &Run, held.get());
    if (error != cudaSuccess) return CudaError(error, "cudaLaunchHostFunc");
    static_cast<void>(held.release());
    return {};
  }

 private:
  static void CUDART_CB Run(void* raw) {
    const std::unique_ptr<std::function<void()>> action(static_cast<std::function<void()>*>(raw));
    (*action)();
  }

  const std::shared_ptr<const CudaDevice> device_;
  Mutex mutex_;
  cudaStream_t stream_ KVM_GUARDED_BY(mutex_) = nullptr;
  cudaEvent_t event_ KVM_GUARDED_BY(mutex_) = nullptr;
};

class CudaBackend final : public MemoryBackend {
 public:
  explicit CudaBackend(std::shared_ptr<const CudaDevice> device)
      : device_(std::move(device)), slots_(std::make_shared<ImportContexts>(device_)), follower_(device_) {}

  HandleKind kind() const noexcept override { return HandleKind::kCudaVmmFd; }
  DeviceUuid device_uuid() const noexcept override { return device_->uuid(); }
  bool Maps(HandleKind) const noexcept override { return true; }

  Result<std::unique_ptr<LocalMemory>> Allocate(const std::string& name, std::span<const std::uint64_t> segment_bytes) override {
    Result<std::unique_ptr<CudaLocalMemory>> memory = AllocateVmm(device_, segment_bytes);
    if (!memory) return MakeError(memory.error().code, "region " + name + ": " + memory.error().message);
    return std::unique_ptr<LocalMemory>(std::move(*memory));
  }

  Result<std::unique_ptr<LocalMemory>> Register(std::span<const DeviceRange> ranges) override {
    Result<std::optional<std::unique_ptr<CudaLocalMemory>>> exportable = RegisterExportable(device_, ranges);
    if (!exportable) return exportable.error();
    if (*exportable) return std::unique_ptr<LocalMemory>(std::move(**exportable));
    Result<std::unique_ptr<CudaLocalMemory>> memory = RegisterIpc(device_, ranges);
    if (!memory) return memory.error();
    return std::unique_ptr<LocalMemory>(std::move(*memory));
  }

  Result<std::unique_ptr<LocalMemory>> Take(std::vector<SegmentHandle> segments) override {
    Result<std::unique_ptr<CudaLocalMemory>> memory = TakeVmm(device_, std::move(segments));
    if (!memory) return memory.error();
    return std::unique_ptr<LocalMemory>(std::move(*memory));
  }

  Result<std::unique_ptr<PeerMemory>> Map(std::vector<SegmentHandle> segments, const PeerOrigin& origin) override {
    const bool apart = OthersAreApart() && origin.kind != HandleKind::kHostMemfd;
    const Result<MemoryPath> path = apart ? PathFromOtherGpu(origin.device) : PathFrom(origin);
    if (!path) return path.error();
    auto memory = std::make_unique<CudaPeerMemory>(*path);
    for (const SegmentHandle& segment : segments) {
      Result<PeerSegment> mapped = MapOne(segment, origin.kind);
      if (!mapped) return mapped.error();
      memory->Add(std::move(*mapped));
    }
    return std::unique_ptr<PeerMemory>(std::move(memory));
  }

  Result<std::unique_ptr<LocalMemory>> MapGranted(SegmentHandle segment) override {
    Result<std::unique_ptr<CudaLocalMemory>> memory = MapGrantedHost(device_, std::move(segment));
    if (!memory) return memory.error();
    return std::unique_ptr<LocalMemory>(std::move(*memory));
  }

  Result<std::unique_ptr<PeerMemory>> View(const LocalMemory& local) override {
    const auto* own = dynamic_cast<const CudaLocalMemory*>(&local);
    if (own == nullptr) return MakeError(Errc::kInvalidArgument, "view of memory of another kind");
    const Result<MemoryPath> path = PathFrom({own->kind(), own->device().uuid()});
    if (!path) return path.error();
    if (own->device().ordinal() != device_->ordinal())
      return MakeError(Errc::kUnsupported, "view of this process's memory on another GPU: map its handles");
    auto memory = std::make_unique<CudaPeerMemory>(*path);
    for (std::byte* base : own->bases()) memory->Add(PeerSegment{base, nullptr, false, "memory of this process"});
    return std::unique_ptr<PeerMemory>(std::move(memory));
  }

  Status AttachGenerations(PeerGenerations& generations) override {
    if (generations.attachment) return {};
    auto registered = RegisteredMemory::Register(device_, generations.memory.data(), generations.memory.size());
    if (!registered) return registered.error();
    generations.attachment = std::move(*registered);
    return {};
  }

  std::unique_ptr<ImportJob> Import(ImportRequest request) override { return StartCudaImport(device_, slots_, std::move(request)); }

  Status RunAfter(StreamHandle stream, std::function<void()> action) override { return follower_.RunAfter(stream, std::move(action)); }

  Result<std::vector<std::uint64_t>> Checksum(const LocalMemory& memory, const Geometry& geometry,
                                              std::span<const std::uint32_t> blocks) override {
    const Result<const CudaLocalMemory*> own = Own(memory);
    if (!own) return own.error();
    return ChecksumBlocks(device_, (*own)->bases(), geometry, blocks);
  }

  Status WriteBytes(const LocalMemory& memory, std::size_t segment, std::uint64_t offset, std::span<const std::byte> bytes) override {
    return Transfer(memory, segment, offset, bytes.size(), [&](std::byte* at, cudaStream_t stream) {
      return cudaMemcpyAsync(at, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream);
    });
  }

  Status ReadBytes(const LocalMemory& memory, std::size_t segment, std::uint64_t offset, std::span<std::byte> bytes) override {
    return Transfer(memory, segment, offset, bytes.size(), [&](const std::byte* at, cudaStream_t stream) {
      return cudaMemcpyAsync(bytes.data(), at, bytes.size(), cudaMemcpyDeviceToHost, stream);
    });
  }

 private:
  Result<const CudaLocalMemory*> Own(const LocalMemory& memory) const {
    const auto* own = dynamic_cast<const CudaLocalMemory*>(&memory);
    if (own == nullptr || own->device().ordinal() != device_->ordinal()) return MakeError(Errc::kInvalidArgument, "not memory of this GPU");
    return own;
  }

  // How this GPU reaches memory of `origin`.
  Result<MemoryPath> PathFrom(const PeerOrigin& origin) const {
    if (origin.kind == HandleKind::kHostMemfd) return MemoryPath::kHost;
    if (origin.device == device_->uuid()) return MemoryPath::kSameDevice;
    return PathFromOtherGpu(origin.device);
  }

  // The same for another GPU than this one.
  Result<MemoryPath> PathFromOtherGpu(const DeviceUuid& owner) const {
    const int ordinal = KVM_FAULT_SWITCH(gpu_not_visible) ? -1 : OrdinalOf(device_->driver(), owner);
    if (ordinal < 0) {
      return MakeError(Errc::kUnsupported,
                       "the owner's " + FormatUuid(owner) +
                           " is not visible to this process (CUDA_VISIBLE_DEVICES, container, MIG): its memory can't be mapped");
    }
    return PathBetween(device_->ordinal(), ordinal);
  }

  // In a test, other processes' GPUs can be other ones than this one, on a machine with one.
  static bool OthersAreApart() { return KVM_FAULT_SWITCH(gpu_not_visible) || KVM_FAULT_SWITCH(gpu_no_peer_access); }

  Result<PeerSegment> MapOne(const SegmentHandle& segment, HandleKind kind) const {
    switch (kind) {
      case HandleKind::kHostMemfd: return MapHost(device_, segment);
      case HandleKind::kCudaIpc: return MapIpc(device_, segment);
      case HandleKind::kCudaVmmFd: return MapVmm(device_, segment);
    }
    return MakeError(Errc::kUnsupported, "unknown kind of handle: " + std::to_string(static_cast<unsigned>(kind)));
  }

  template <class Copy>
  Status Transfer(const LocalMemory& memory, std::size_t segment, std::uint64_t offset, std::uint64_t bytes, Copy copy) {
    const Result<const CudaLocalMemory*> own = Own(memory);
    if (!own) return own.error();
    if (Status inside = CheckRange(memory, segment, offset, bytes); !inside) return inside;
    Result<std::unique_ptr<ImportContext>> slot = slots_->Take();
    if (!slot) return slot.error();
    const DeviceGuard guard(*device_);
    cudaError_t error = copy(memory.SegmentData(segment) + offset, (*slot)->stream());
    if (error == cudaSuccess) error = cudaStreamSynchronize((*slot)->stream());
    slots_->Return(std::move(*slot), error == cudaSuccess);
    return CudaStatus(error, "copying bytes of a region");
  }

  const std::shared_ptr<const CudaDevice> device_;
  const std::shared_ptr<ImportContexts> slots_;
  StreamFollower follower_;
};

}  // namespace

Result<std::shared_ptr<MemoryBackend>> MakeCudaBackend(const DeviceUuid& uuid) {
  Result<std::shared_ptr<const CudaDevice>> device = CudaDevice::Open(uuid);
  if (!device) return device.error();
  return std::shared_ptr<MemoryBackend>(std::make_shared<CudaBackend>(std::move(*device)));
}

}  // namespace kvm
