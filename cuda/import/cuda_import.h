// One import over CUDA: the CPU checks the generations first, the GPU copies the bytes and
// validates them in stream order, and the CPU sees the completion in host memory without a system
// call.
#pragma once

#include <memory>

#include "cuda/device/cuda_device.h"
#include "cuda/import/import_contexts.h"
#include "cuda/memory_backend.h"

namespace kvm {

// Starts the import. The backend owns `device` and `slots`.
std::unique_ptr<ImportJob> StartCudaImport(std::shared_ptr<const CudaDevice> device, std::shared_ptr<ImportContexts> slots,
                                           ImportRequest request);

}  // namespace kvm
