// One import over CUDA: generations checked by the CPU, bytes copied and validated on the GPU in stream
// order, completion seen in host memory without a call.
#pragma once

#include <memory>

#include "cuda/device/cuda_device.h"
#include "cuda/import/import_contexts.h"
#include "cuda/memory_backend.h"

namespace kvm {

// Starts the import. `device` and `slots` are the backend's.
std::unique_ptr<ImportJob> StartCudaImport(std::shared_ptr<const CudaDevice> device, std::shared_ptr<ImportContexts> slots,
                                           ImportRequest request);

}  // namespace kvm
