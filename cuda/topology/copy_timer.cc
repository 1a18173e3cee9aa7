#include "cuda/topology/copy_timer.h"

#include <utility>

namespace kvm {

Result<std::unique_ptr<CopyTimer>> CopyTimer::Create(std::shared_ptr<const CudaDevice> importer, std::shared_ptr<const CudaDevice> owner,
                                                     std::uint64_t bytes) {
  auto timer = std::unique_ptr<CopyTimer>(new CopyTimer(std::move(importer), std::move(owner), bytes));
  if (const cudaError_t error = timer->Prepare(); error != cudaSuccess) return CudaError(error, "preparing to measure copies");
  return timer;
}

cudaError_t CopyTimer::Prepare() {
  {
    const DeviceGuard guard(*owner_);
    if (const cudaError_t error = cudaMalloc(&source_, bytes_); error != cudaSuccess) return error;
  }
  const DeviceGuard guard(*importer_);
  if (importer_->ordinal() != owner_->ordinal()) {
    const cudaError_t error = cudaDeviceEnablePeerAccess(owner_->ordinal(), 0);
    access_enabled_ = error == cudaSuccess;
    static_cast<void>(cudaGetLastError());
    if (error != cudaSuccess && error != cudaErrorPeerAccessAlreadyEnabled) return error;
  }
  cudaError_t error = cudaMalloc(&destination_, bytes_);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaEventCreate(&begin_);
  if (error == cudaSuccess) error = cudaEventCreate(&end_);
  return error;
}

CopyTimer::~CopyTimer() {
  {
    const DeviceGuard guard(*importer_);
    if (stream_ != nullptr) static_cast<void>(cudaStreamSynchronize(stream_));
    if (end_ != nullptr) static_cast<void>(cudaEventDestroy(end_));
    if (begin_ != nullptr) static_cast<void>(cudaEventDestroy(begin_));
    if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
    static_cast<void>(cudaFree(destination_));
    if (access_enabled_) static_cast<void>(cudaDeviceDisablePeerAccess(owner_->ordinal()));
  }
  const DeviceGuard guard(*owner_);
  static_cast<void>(cudaFree(source_));
  static_cast<void>(cudaGetLastError());
}

Result<std::vector<double>> CopyTimer::Time(unsigned rounds) {
  const DeviceGuard guard(*importer_);
  std::vector<double> seconds;
  for (unsigned round = 0; round <= rounds; ++round) {
    double taken = 0;
    if (const cudaError_t error = OneRound(taken); error != cudaSuccess) return CudaError(error, "measuring a copy");
    if (round > 0) seconds.push_back(taken);  // the first one sets the path up
  }
  return seconds;
}

cudaError_t CopyTimer::OneRound(double& seconds) {
  cudaError_t error = cudaEventRecord(begin_, stream_);
  if (error == cudaSuccess) error = cudaMemcpyPeerAsync(destination_, importer_->ordinal(), source_, owner_->ordinal(), bytes_, stream_);
  if (error == cudaSuccess) error = cudaEventRecord(end_, stream_);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream_);
  float ms = 0;
  if (error == cudaSuccess) error = cudaEventElapsedTime(&ms, begin_, end_);
  seconds = ms / 1e3;
  return error;
}

}  // namespace kvm
