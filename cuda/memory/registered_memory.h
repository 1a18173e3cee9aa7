// Host mappings that a GPU may read: generation tables and host regions, registered read-only with
// CUDA.
#pragma once

#include <memory>

#include "cuda/memory/device_memory.h"

namespace kvm {

// A registered mapping. Unregisters on destruction; the mapping must outlive it.
class RegisteredMemory {
 public:
  enum class Access { kRead, kReadWrite };
  // kRead works on PROT_READ mappings of sealed memfds. kUnsupported: this machine's driver can't
  // register the memory.
  [[nodiscard]] static Result<std::shared_ptr<const RegisteredMemory>> Register(const std::shared_ptr<const CudaDevice>& device,
                                                                                const std::byte* data, std::size_t bytes,
                                                                                Access access = Access::kRead);
  RegisteredMemory(std::shared_ptr<const CudaDevice> device, const std::byte* data, std::uint64_t address)
      : device_(std::move(device)), data_(data), device_address_(address) {}
  ~RegisteredMemory();
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;

  std::uint64_t device_address() const noexcept { return device_address_; }

 private:
  const std::shared_ptr<const CudaDevice> device_;
  const std::byte* const data_;
  const std::uint64_t device_address_;
};

// Maps a host region's memfd and registers it.
[[nodiscard]] Result<PeerSegment> MapHost(const std::shared_ptr<const CudaDevice>& device, const SegmentHandle& segment);

// Maps host memory that kvmd granted, writable, and registers it: a destination for copies by this
// GPU. Consumes the descriptor.
[[nodiscard]] Result<std::unique_ptr<CudaLocalMemory>> MapGrantedHost(const std::shared_ptr<const CudaDevice>& device,
                                                                      SegmentHandle segment);

}  // namespace kvm
