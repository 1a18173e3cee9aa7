// CudaLocalMemory and CudaPeerMemory: the CUDA backend's memory objects, for all kinds of handle.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device/cuda_device.h"
#include "cuda/memory_backend.h"

namespace kvm {

class CudaLocalMemory : public LocalMemory {
 public:
  CudaLocalMemory(std::shared_ptr<const CudaDevice> device, layout::HandleKind kind) : device_(std::move(device)), kind_(kind) {}

  layout::HandleKind kind() const noexcept override { return kind_; }
  std::span<const SegmentHandle> handles() const noexcept override { return handles_; }
  std::byte* SegmentData(std::size_t segment) const noexcept override { return bases_[segment]; }
  std::span<std::byte* const> bases() const noexcept { return bases_; }
  const CudaDevice& device() const noexcept { return *device_; }

  void Add(SegmentHandle handle, std::byte* base, std::shared_ptr<const void> owner) {
    handles_.push_back(std::move(handle));
    bases_.push_back(base);
    owners_.push_back(std::move(owner));
  }

 private:
  const std::shared_ptr<const CudaDevice> device_;
  const layout::HandleKind kind_;
  std::vector<SegmentHandle> handles_;
  std::vector<std::byte*> bases_;
  // Their destructors free or release the segments
  std::vector<std::shared_ptr<const void>> owners_;
};

// A mapped segment; the destructor of `owner` unmaps it.
struct PeerSegment {
  const std::byte* base = nullptr;
  std::shared_ptr<const void> owner;
  bool read_only = false;
  std::string detail;  // if it is not read-only: why
};

class CudaPeerMemory final : public PeerMemory {
 public:
  explicit CudaPeerMemory(MemoryPath path) : path_(path) {}

  MemoryPath path() const noexcept override { return path_; }
  bool read_only() const noexcept override { return read_only_; }
  const std::string& detail() const noexcept override { return detail_; }
  std::span<const std::byte* const> bases() const noexcept { return bases_; }

  void Add(PeerSegment segment) {
    bases_.push_back(segment.base);
    owners_.push_back(std::move(segment.owner));
    read_only_ = read_only_ && segment.read_only;
    if (detail_.empty()) detail_ = std::move(segment.detail);
  }

 private:
  const MemoryPath path_;
  bool read_only_ = true;
  std::string detail_;
  std::vector<const std::byte*> bases_;
  std::vector<std::shared_ptr<const void>> owners_;
};

}  // namespace kvm
