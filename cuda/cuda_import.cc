#include "cuda/cuda_import.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "cuda/copy_kernels.h"
#include "cuda/device_memory.h"
#include "cuda/registered_memory.h"
#include "cuda/transfer_plan.h"

namespace kvm {
namespace {

using Clock = std::chrono::steady_clock;

class CudaImportJob final : public ImportJob {
 public:
  CudaImportJob(std::shared_ptr<const CudaDevice> device, std::shared_ptr<ImportSlots> slots, ImportRequest request)
      : device_(std::move(device)), slots_(std::move(slots)), request_(std::move(request)), statuses_(request_.blocks.size()) {}

  // What was started writes to the destination: nobody may reuse that before it has ended.
  ~CudaImportJob() override {
    Wait(SteadyTime::max());
    if (slot_) slots_->Return(std::move(slot_), usable_);
  }

  void Start() {
    if (request_.blocks.empty()) return Finish();
    if (request_.deadline != SteadyTime::max() && Clock::now() >= request_.deadline) return FailFrom(0, BlockStatus::kDeadline);
    Status started = Submit();
    if (!started && !slot_) return FailFrom(0, BlockStatus::kError);
    if (!started) Abandon();
  }

  bool Done() noexcept override {
    if (finished_) return true;
    if (on_gpu_ ? AllReported() : std::atomic_ref<std::uint32_t>(*slot_->done()).load(std::memory_order_acquire) == job_) {
      Collect();
      return true;
    }
    // The report never comes if the GPU fails.
    if (++polls_ % kPollsPerQuery == 0 && GpuFailed()) FailAll();
    return finished_;
  }

  bool Wait(SteadyTime deadline) noexcept override {
    for (unsigned spins = 0; !Done(); ++spins) {
      if (deadline != SteadyTime::max() && spins % 16 == 15 && Clock::now() >= deadline) return false;
      if (spins >= kSpinsBeforeYield) ::sched_yield();
    }
    return true;
  }

  std::span<const BlockStatus> statuses() const noexcept override { return statuses_; }
  void* event() const noexcept override { return request_.wants_event && slot_ ? slot_->event() : nullptr; }

 private:
  static constexpr unsigned kPollsPerQuery = 4096, kSpinsBeforeYield = 20000;

  Status Submit();
  Status Enqueue(const TransferPlan& plan, cudaStream_t stream);
  Result<std::vector<TransferRun>> CheckRuns();
  void ValidateOnCpu();

  // Something was queued and something failed: waits for the former, fails everything.
  void Abandon() noexcept {
    const DeviceGuard guard(*device_);
    usable_ = cudaStreamSynchronize(stream_) == cudaSuccess;
    // A launch that did not happen leaves no arrivals behind; one that did has reset them.
    static_cast<void>(cudaGetLastError());
    FailAll();
  }

  bool GpuFailed() noexcept {
    const DeviceGuard guard(*device_);
    const cudaError_t error = cudaStreamQuery(stream_);
    if (error == cudaSuccess || error == cudaErrorNotReady) return false;
    static_cast<void>(cudaGetLastError());
    usable_ = false;
    return true;
  }

  // Statuses arrive in any order; those before reported_ are known to be there. Eight at a time.
  bool AllReported() noexcept {
    static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free);
    constexpr std::uint64_t kOnes = 0x0101010101010101ULL, kHigh = 0x8080808080808080ULL;
    std::uint8_t* statuses = slot_->statuses();
    while (reported_ + 8 <= submitted_) {
      const std::uint64_t eight = std::atomic_ref(*reinterpret_cast<std::uint64_t*>(statuses + reported_)).load(std::memory_order_acquire);
      if (((eight - kOnes) & ~eight & kHigh) != 0) return false;  // one of them is 0
      reported_ += 8;
    }
    while (reported_ < submitted_ && std::atomic_ref(statuses[reported_]).load(std::memory_order_acquire) != 0) ++reported_;
    return reported_ == submitted_;
  }

  void Collect() noexcept {
    if (request_.validation == Validation::kNone) {
      std::fill_n(statuses_.begin(), submitted_, BlockStatus::kValid);
    } else if (!on_gpu_) {
      ValidateOnCpu();
    } else {
      const std::uint8_t* reported = slot_->statuses();
      for (const BlockRange& range : order_) {
        for (std::uint32_t i = 0; i < range.count; ++i) statuses_[range.first + i] = static_cast<BlockStatus>(*reported++);
      }
    }
    for (std::size_t i = 0; i < submitted_; ++i) {
      if (statuses_[i] != BlockStatus::kValid && statuses_[i] != BlockStatus::kStale) statuses_[i] = BlockStatus::kError;
    }
    Finish();
  }

  void FailAll() noexcept {
    std::fill(statuses_.begin(), statuses_.end(), BlockStatus::kError);
    Finish();
  }
  void FailFrom(std::size_t first, BlockStatus status) noexcept {
    submitted_ = std::min(submitted_, first);
    statuses_[first] = status;
    Finish();
  }

  // Everything behind the first failure failed (I8).
  void Finish() noexcept {
    auto bad = std::find_if(statuses_.begin(), statuses_.end(), [](BlockStatus status) { return status != BlockStatus::kValid; });
    if (bad != statuses_.end()) std::fill(bad + 1, statuses_.end(), BlockStatus::kBehindFailed);
    finished_ = true;
    request_.runs.clear();
    request_.keep.reset();
    if (slot_ && !request_.wants_event) slots_->Return(std::move(slot_), usable_);
  }

  const std::shared_ptr<const CudaDevice> device_;
  const std::shared_ptr<ImportSlots> slots_;
  ImportRequest request_;
  std::vector<BlockStatus> statuses_;
  std::unique_ptr<ImportSlot> slot_;
  cudaStream_t stream_ = nullptr;
  std::vector<BlockRange> order_;  // the blocks of the statuses that the GPU reports
  std::size_t submitted_ = 0;      // leading blocks that the GPU was given
  std::uint32_t job_ = 0;
  unsigned polls_ = 0;
  bool usable_ = true;  // of the slot, afterwards
  std::size_t reported_ = 0;
  bool on_gpu_ = true;  // who validates
  bool finished_ = false;
};

// The first check of every generation. Ends with the first block that is stale already.
Result<std::vector<TransferRun>> CudaImportJob::CheckRuns() {
  std::vector<TransferRun> runs;
  const bool validate = request_.validation == Validation::kBeforeAndAfter;
  for (const ImportRun& run : request_.runs) {
    const auto* source = dynamic_cast<const CudaPeerMemory*>(run.source);
    if (source == nullptr || run.plan == nullptr || run.generations == nullptr || run.first != submitted_ ||
        run.count > request_.blocks.size() - run.first) {
      return MakeError(Errc::kInvalidArgument, "import: a run that is not of this backend, or out of order");
    }
    const GenerationReader& generations = run.generations->reader;
    const auto* registered = static_cast<const RegisteredMemory*>(run.generations->attachment.get());
    std::size_t good = 0;
    constexpr std::size_t kAhead = 16;
    while (validate && good < run.count) {
      if (good + kAhead < run.count) generations.Prefetch(request_.blocks[run.first + good + kAhead].source_block);
      const ImportBlock& block = request_.blocks[run.first + good];
      if (!IsReadable(block.generation) || generations.Current(block.source_block) != block.generation) break;
      ++good;
    }
    if (!validate) good = run.count;
    on_gpu_ = on_gpu_ && validate && registered != nullptr;
    TransferRun transfer;
    transfer.plan = run.plan;
    transfer.source_bases = source->bases();
    transfer.generations = registered == nullptr ? 0 : registered->device_address() + sizeof(GenerationHeader);
    transfer.generation_count = registered == nullptr ? 0 : generations.block_count();
    transfer.path = source->path();
    transfer.source = run.source;
    transfer.first = run.first;
    transfer.count = good;
    runs.push_back(transfer);
    submitted_ = run.first + good;
    if (good < run.count) {
      statuses_[submitted_] = BlockStatus::kStale;
      break;
    }
  }
  return runs;
}

Status CudaImportJob::Submit() {
  const auto* destination = dynamic_cast<const CudaLocalMemory*>(request_.destination);
  if (destination == nullptr || destination->device().ordinal() != device_->ordinal()) {
    return MakeError(Errc::kInvalidArgument, "import: the destination is not memory of this GPU");
  }
  const Result<std::vector<TransferRun>> runs = CheckRuns();
  if (!runs) return runs.error();
  if (submitted_ == 0) {
    Finish();
    return {};
  }
  if (request_.stream) {
    const DeviceGuard guard(*device_);
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    const cudaError_t error = cudaStreamIsCapturing(reinterpret_cast<cudaStream_t>(request_.stream->value), &capture);
    if (error != cudaSuccess) return CudaError(error, "import: the caller's stream");
    if (capture != cudaStreamCaptureStatusNone) return MakeError(Errc::kInvalidArgument, "import: the caller's stream is being captured");
  }
  CopyLimits limits = device_->limits();
  limits.max_sms = request_.max_sms;
  Result<std::unique_ptr<ImportSlot>> slot = slots_->Take();
  if (!slot) return slot.error();
  TransferPlan& plan = (*slot)->plan();
  Status ready = PlanTransfer(*runs, request_.blocks, destination->bases(), limits, plan);
  if (ready) ready = (*slot)->Reserve(plan.pair_count, plan.table.size() > kMaxInlineTable ? plan.table.size() : 0);
  if (!ready) {
    slots_->Return(std::move(*slot), true);
    return ready;
  }
  slot_ = std::move(*slot);
  order_ = plan.order;
  job_ = slot_->NextJob();
  stream_ = request_.stream ? reinterpret_cast<cudaStream_t>(request_.stream->value) : slot_->stream();
  std::memset(slot_->statuses(), 0, submitted_);
  return Enqueue(plan, stream_);
}

Status CudaImportJob::Enqueue(const TransferPlan& plan, cudaStream_t stream) {
  const DeviceGuard guard(*device_);
  const void* device_table = nullptr;
  if (plan.table.size() > kMaxInlineTable) {
    std::memcpy(slot_->staged_table(), plan.table.data(), plan.table.size());
    const cudaError_t error = cudaMemcpyAsync(slot_->table(), slot_->staged_table(), plan.table.size(), cudaMemcpyHostToDevice, stream);
    if (error != cudaSuccess) return CudaError(error, "import: uploading the table");
    device_table = slot_->table();
  }
  for (const EngineCopy& copy : plan.engine_copies) {
    const cudaError_t error = cudaMemcpyAsync(reinterpret_cast<void*>(copy.destination), reinterpret_cast<const void*>(copy.source),
                                              copy.bytes, cudaMemcpyDefault, stream);
    if (error != cudaSuccess) return CudaError(error, "import: cudaMemcpyAsync");
  }
  CopyArgs args;
  args.group_count = plan.group_count;
  args.piece_count = plan.piece_count;
  args.pair_count = plan.pair_count;
  args.item_count = plan.item_count;
  args.unit_bytes = plan.kernel.unit_bytes;
  args.done_value = job_;
  args.statuses = slot_->statuses();
  args.done = slot_->done();
  args.arrivals = slot_->arrivals();
  const bool fused = plan.item_count > 0 && plan.pair_count <= kFusedPairs;
  if (!on_gpu_) {
    args.report = ReportBy::kDoneWord;
  } else if (fused) {
    args.report = ReportBy::kLastBlock;
  }
  cudaError_t error = cudaSuccess;
  if (plan.item_count > 0 || !on_gpu_) error = LaunchCopy(plan.kernel, args, plan.table, device_table, stream);
  if (error == cudaSuccess && on_gpu_ && !fused) {
    CopyLimits limits = device_->limits();
    limits.max_sms = request_.max_sms;
    error = LaunchValidate(ValidationBlocks(plan.pair_count, limits), args, plan.table, device_table, stream);
  }
  if (error == cudaSuccess && request_.wants_event) error = cudaEventRecord(slot_->event(), stream);
  return CudaStatus(error, "import: launching the copy");
}

// Where the GPU can't read the generations: correct as well, since the copy has completed.
void CudaImportJob::ValidateOnCpu() {
  for (const ImportRun& run : request_.runs) {
    for (std::size_t i = run.first; i < std::min(run.first + run.count, submitted_); ++i) {
      const ImportBlock& block = request_.blocks[i];
      statuses_[i] = run.generations->reader.StillValid(block.source_block, block.generation) ? BlockStatus::kValid : BlockStatus::kStale;
    }
  }
}

}  // namespace

std::unique_ptr<ImportJob> StartCudaImport(std::shared_ptr<const CudaDevice> device, std::shared_ptr<ImportSlots> slots,
                                           ImportRequest request) {
  auto job = std::make_unique<CudaImportJob>(std::move(device), std::move(slots), std::move(request));
  job->Start();
  return job;
}

}  // namespace kvm
