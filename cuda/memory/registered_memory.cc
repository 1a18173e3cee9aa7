#include "cuda/memory/registered_memory.h"

#include <utility>

namespace kvm {
namespace {

// In the order of destruction: unregistered first, then unmapped.
struct MappedHostSegment {
  MappedMemory mapping;
  std::shared_ptr<const RegisteredMemory> registered;
};
struct GrantedHostSegment {
  OwnedMemory mapping;
  std::shared_ptr<const RegisteredMemory> registered;
};

}  // namespace

Result<std::shared_ptr<const RegisteredMemory>> RegisteredMemory::Register(const std::shared_ptr<const CudaDevice>& device,
                                                                           const std::byte* data, std::size_t bytes, Access access) {
  const DeviceGuard guard(*device);
  void* host = const_cast<std::byte*>(data);
  const unsigned flags = cudaHostRegisterMapped | cudaHostRegisterPortable | (access == Access::kRead ? cudaHostRegisterReadOnly : 0);
  if (const cudaError_t error = cudaHostRegister(host, bytes, flags); error != cudaSuccess) return CudaError(error, "cudaHostRegister");
  void* address = nullptr;
  if (const cudaError_t error = cudaHostGetDevicePointer(&address, host, 0); error != cudaSuccess) {
    static_cast<void>(cudaHostUnregister(host));
    return CudaError(error, "cudaHostGetDevicePointer");
  }
  return std::make_shared<const RegisteredMemory>(device, data, reinterpret_cast<std::uintptr_t>(address));
}

RegisteredMemory::~RegisteredMemory() {
  const DeviceGuard guard(*device_);
  static_cast<void>(cudaHostUnregister(const_cast<std::byte*>(data_)));
  static_cast<void>(cudaGetLastError());
}

Result<PeerSegment> MapHost(const std::shared_ptr<const CudaDevice>& device, const SegmentHandle& segment) {
  Result<MappedMemory> mapping = MappedMemory::Attach(segment.fd.get(), segment.size_bytes, HugePages::kTry);
  if (!mapping) return mapping.error();
  auto held = std::make_shared<MappedHostSegment>();
  held->mapping = std::move(*mapping);
  auto registered = RegisteredMemory::Register(device, held->mapping.data(), held->mapping.size());
  if (!registered) return registered.error();
  held->registered = std::move(*registered);
  PeerSegment peer;
  peer.base = reinterpret_cast<const std::byte*>(static_cast<std::uintptr_t>(held->registered->device_address()));
  peer.read_only = true;
  peer.owner = std::move(held);
  return peer;
}

Result<std::unique_ptr<CudaLocalMemory>> MapGrantedHost(const std::shared_ptr<const CudaDevice>& device, SegmentHandle segment) {
  Result<OwnedMemory> mapping = OwnedMemory::Take(std::move(segment.fd), segment.size_bytes, HugePages::kLater);
  if (!mapping) return mapping.error();
  auto held = std::make_shared<GrantedHostSegment>();
  held->mapping = std::move(*mapping);
  auto registered = RegisteredMemory::Register(device, held->mapping.data(), held->mapping.size(), RegisteredMemory::Access::kReadWrite);
  if (!registered) return registered.error();
  held->registered = std::move(*registered);
  auto memory = std::make_unique<CudaLocalMemory>(device, layout::HandleKind::kHostMemfd);
  auto* const base = reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(held->registered->device_address()));
  memory->Add(std::move(segment), base, std::move(held));
  return memory;
}

}  // namespace kvm
