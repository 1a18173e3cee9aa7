// ImportContext: the resources of one import under way: host memory to which the GPU reports,
// device memory for large tables, streams, and events. They are pooled, since making them takes
// milliseconds and an import takes microseconds.
//
// Streams have the highest priority: a request waits for its import, and without a free
// multiprocessor a copy would wait for all of a model's kernels. The pool is thread-safe; a context
// belongs to one import at a time. A context whose GPU has failed is destroyed instead of returned.
// The contexts of a destroyed pool are kept for the next pool of that GPU, so that the end of a
// backend waits for no stream.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cuda/device/cuda_device.h"
#include "cuda/plan/transfer_plan.h"
#include "proto/base/thread_safety.h"

namespace kvm {

class ImportContext {
 public:
  explicit ImportContext(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {}
  ~ImportContext();
  ImportContext(const ImportContext&) = delete;
  ImportContext& operator=(const ImportContext&) = delete;

  // Makes room for so many blocks, and for a table in device memory of that size (0: no table).
  [[nodiscard]] Status Reserve(std::size_t blocks, std::size_t table_bytes);

  // Host memory that the GPU accesses at the same address.
  std::uint32_t* done() const noexcept { return reinterpret_cast<std::uint32_t*>(pinned_); }
  std::uint8_t* statuses() const noexcept { return reinterpret_cast<std::uint8_t*>(pinned_ + kLine); }
  std::byte* staged_table() const noexcept { return staged_; }
  // Device memory.
  void* table() const noexcept { return table_; }
  std::uint32_t* arrivals() const noexcept { return arrivals_; }

  // Kept for its allocations.
  TransferPlan& plan() noexcept { return plan_; }

  cudaStream_t stream() const noexcept { return stream_; }
  // For validations that take place beside the next copy on stream().
  cudaStream_t validation_stream() const noexcept { return validation_stream_; }
  // For the next copy's table, beside a copy on stream().
  cudaStream_t upload_stream() const noexcept { return upload_stream_; }
  cudaEvent_t event() const noexcept { return event_; }
  // From stream() to validation_stream().
  cudaEvent_t copied() const noexcept { return copied_; }
  // From upload_stream() to stream().
  cudaEvent_t uploaded() const noexcept { return uploaded_; }
  std::uint32_t NextJob() noexcept { return ++job_ == 0 ? ++job_ : job_; }  // never 0

 private:
  static constexpr std::size_t kLine = 128;
  Status Make();

  const std::shared_ptr<const CudaDevice> device_;
  std::byte* pinned_ = nullptr;  // [done][statuses: blocks_]
  std::size_t blocks_ = 0;
  std::byte* staged_ = nullptr;
  void* table_ = nullptr;
  std::size_t table_bytes_ = 0;
  // Buffers that became too small. To free them would wait for all work on the GPU, which an import
  // must not do. Sizes double, so these buffers are together never larger than those in use.
  std::vector<void*> retired_host_, retired_device_;
  std::uint32_t* arrivals_ = nullptr;
  cudaStream_t stream_ = nullptr, validation_stream_ = nullptr, upload_stream_ = nullptr;
  cudaEvent_t event_ = nullptr, copied_ = nullptr, uploaded_ = nullptr;
  std::uint32_t job_ = 0;
  TransferPlan plan_;
};

class ImportContexts {
 public:
  // Makes a few slots ahead, so that the first imports find them.
  explicit ImportContexts(std::shared_ptr<const CudaDevice> device);
  ~ImportContexts();
  ImportContexts(const ImportContexts&) = delete;
  ImportContexts& operator=(const ImportContexts&) = delete;

  // kResourceExhausted: kMaxSlots imports are under way. kSystem, …: a new one could not be made.
  [[nodiscard]] Result<std::unique_ptr<ImportContext>> Take();
  void Return(std::unique_ptr<ImportContext> slot, bool usable);
  // A stream of the lowest priority, for copies that no request waits for; made at the first call.
  [[nodiscard]] Result<cudaStream_t> BackgroundStream();

  static constexpr std::size_t kMaxSlots = 256;

 private:
  const std::shared_ptr<const CudaDevice> device_;
  Mutex mutex_;
  std::vector<std::unique_ptr<ImportContext>> free_ KVM_GUARDED_BY(mutex_);
  std::size_t taken_ KVM_GUARDED_BY(mutex_) = 0;
  cudaStream_t background_ KVM_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace kvm
