// The functions that torch.cuda.memory.CUDAPluggableAllocator needs, for exportable memory;
// kvclient.torch.mem_pool finds them in this module's file. torch may call them while its allocator
// is locked, with or without the GIL, so nothing here uses Python. `stream` is a cudaStream_t; the
// memory is usable on any stream.
#include <sys/types.h>

#include <exception>

#include "kvm/exportable_memory.h"

extern "C" __attribute__((visibility("default"))) void* kvm_torch_allocate(ssize_t size, int device, void* stream);
extern "C" __attribute__((visibility("default"))) void kvm_torch_free(void* address, ssize_t size, int device, void* stream);

// Returns null on failure. torch then frees its cached memory and tries again, and after that
// raises its OutOfMemoryError.
void* kvm_torch_allocate(ssize_t size, int device, void* /*stream*/) {
  try {
    if (size <= 0) return nullptr;
    const kvm::Result<kvm::DeviceUuid> uuid = kvm::DeviceAt(device);
    if (!uuid) return nullptr;
    const kvm::Result<void*> memory = kvm::AllocateExportable(*uuid, static_cast<std::uint64_t>(size));
    return memory ? *memory : nullptr;
  } catch (const std::exception&) {
    return nullptr;
  }
}

void kvm_torch_free(void* address, ssize_t /*size*/, int /*device*/, void* /*stream*/) {
  try {
    if (address != nullptr) static_cast<void>(kvm::FreeExportable(address));
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch)
    // torch frees at exit too, when CUDA may be gone.
  }
}
