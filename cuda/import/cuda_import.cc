#include "cuda/import/cuda_import.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstring>
#include <thread>
#include <utility>

#include "cuda/import/import_phase.h"
#include "cuda/import/job_reaper.h"
#include "cuda/import/queued_plan.h"
#include "cuda/import/waves.h"
#include "cuda/kernels/copy_kernels.h"
#include "cuda/memory/device_memory.h"
#include "cuda/memory/registered_memory.h"
#include "cuda/plan/transfer_plan.h"

namespace kvm {
namespace {

using Clock = std::chrono::steady_clock;

class CudaImportJob final : public ImportJob {
 public:
  CudaImportJob(std::shared_ptr<const CudaDevice> device, std::shared_ptr<ImportContexts> slots, ImportRequest request)
      : device_(std::move(device)), slots_(std::move(slots)), request_(std::move(request)), statuses_(BlocksOf(request_.runs)) {}

  // Copies that were started write to the destination, which must not be reused before they have
  // ended.
  ~CudaImportJob() override {
    Wait(SteadyTime::max());
    if (slot_) slots_->Return(std::move(slot_), usable_);
  }

  void Start() {
    if (statuses_.empty()) return Finish();
    if (request_.deadline != SteadyTime::max() && Clock::now() >= request_.deadline) return FailFrom(0, BlockStatus::kDeadline);
    const Status submitted = Submit();
    request_.prepare = nullptr;  // its objects live as long as the call
    if (phase_ == ImportPhase::kQueueing) return submitted ? Enter(ImportPhase::kRunning) : Drain();
    // Nothing is on the stream.
    if (!submitted) return FailAll();
    Finish();
  }

  bool Done() noexcept override {
    if (phase_ == ImportPhase::kEnded) return true;
    if (phase_ == ImportPhase::kDraining) return QueuedHasEnded();
    if (on_gpu_ ? AllReported() : std::atomic_ref<std::uint32_t>(*slot_->done()).load(std::memory_order_acquire) == job_) {
      Collect();
      return true;
    }
    // The report never comes if the GPU fails.
    if (++polls_ % kPollsPerQuery == 0 && GpuFailed()) FailAll();
    return phase_ == ImportPhase::kEnded;
  }

  bool Wait(SteadyTime deadline) noexcept override {
    for (unsigned spins = 0; !Done(); ++spins) {
      const bool sleeps = spins >= kSpinsBeforeSleep;
      if (deadline != SteadyTime::max() && (spins % 16 == 15 || sleeps) && Clock::now() >= deadline) return false;
      if (sleeps) {
        std::this_thread::sleep_for(kSleep);
        polls_ |= kPollsPerQuery - 1;  // the next look asks after the GPU as well
      } else if (spins >= kSpinsBeforeYield) {
        ::sched_yield();
      }
    }
    return true;
  }

  std::span<const BlockStatus> statuses() const noexcept override { return statuses_; }
  void* event() const noexcept override { return request_.wants_event && slot_ ? slot_->event() : nullptr; }

 private:
  static constexpr unsigned kPollsPerQuery = 4096, kSpinsBeforeYield = 20'000, kSpinsBeforeSleep = 40'000;
  static constexpr std::chrono::microseconds kSleep{50};

  Status CheckRequest();
  std::vector<TransferRun> TakeRuns(std::size_t end);
  Status Submit();
  Status SubmitWave(std::span<const TransferRun> runs, std::size_t first, bool last_wave);
  Status Enqueue(const TransferPlan& plan, std::size_t first, bool fused);
  Status Upload(const TransferPlan& plan, std::byte* own_table);
  cudaError_t QueueUploadsBefore(cudaStream_t stream);
  cudaError_t QueueValidation(const TransferPlan& plan, const CopyArgs& args, const void* device_table);
  cudaError_t RecordEnd();
  void ValidateOnCpu();

  void Enter(ImportPhase next) noexcept {
    assert(MayFollow(phase_, next));
    phase_ = next;
  }

  // A part was queued and another failed: all of it counts as failed, once the queued part has
  // ended, which may take long on a stream of the caller's.
  void Drain() noexcept {
    const DeviceGuard guard(*device_);
    // A launch that failed did not touch `arrivals`; one that ran has reset it.
    static_cast<void>(cudaGetLastError());
    if (RecordEnd() == cudaSuccess) return Enter(ImportPhase::kDraining);
    static_cast<void>(cudaGetLastError());
    usable_ = false;
    FailAll();
  }

  bool QueuedHasEnded() noexcept {
    const DeviceGuard guard(*device_);
    const cudaError_t error = cudaEventQuery(slot_->event());
    if (error == cudaErrorNotReady) return false;
    usable_ = error == cudaSuccess;
    static_cast<void>(cudaGetLastError());
    FailAll();
    return true;
  }

  // By the slot's own stream: a failed GPU fails all of them, and the caller may have destroyed the
  // one that it gave.
  bool GpuFailed() noexcept {
    const DeviceGuard guard(*device_);
    const cudaError_t error = cudaStreamQuery(slot_->stream());
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
    // The kernels' fences order what the GPU sees; another process sees host memory once the stream
    // is done.
    if (to_host_ && !Synchronized()) return FailAll();
    if (!on_gpu_) {
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

  bool Synchronized() noexcept {
    const DeviceGuard guard(*device_);
    usable_ = cudaStreamSynchronize(stream_) == cudaSuccess;
    static_cast<void>(cudaGetLastError());
    return usable_;
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

  // Everything behind the first failure failed (I8: a prefix with a hole is no prefix).
  void Finish() noexcept {
    auto bad = std::find_if(statuses_.begin(), statuses_.end(), [](BlockStatus status) { return status != BlockStatus::kValid; });
    if (bad != statuses_.end()) std::fill(bad + 1, statuses_.end(), BlockStatus::kBehindFailed);
    Enter(ImportPhase::kEnded);
    request_.runs.clear();
    request_.keep.reset();
    if (slot_ && !request_.wants_event) slots_->Return(std::move(slot_), usable_);
  }

  const std::shared_ptr<const CudaDevice> device_;
  const std::shared_ptr<ImportContexts> slots_;
  ImportRequest request_;
  std::vector<BlockStatus> statuses_;
  std::unique_ptr<ImportContext> slot_;
  cudaStream_t stream_ = nullptr;
  std::vector<BlockRange> order_;  // the blocks of the statuses that the GPU reports
  std::size_t submitted_ = 0;      // leading blocks that the GPU was given
  std::uint32_t job_ = 0;
  unsigned polls_ = 0;
  bool usable_ = true;           // of the slot, afterwards
  std::size_t reported_ = 0;     // leading statuses that are there
  std::size_t table_bound_ = 0;  // most bytes that the tables of all waves can have
  std::size_t table_used_ = 0;
  std::span<std::byte* const> destination_bases_;
  bool to_host_ = false;
  bool on_gpu_ = true;             // who validates
  bool stale_found_ = false;       // by the first check
  bool uploads_ = false;           // a table, on a stream of its own
  bool validates_beside_ = false;  // on a stream of its own, beside the next wave's copy
  ImportPhase phase_ = ImportPhase::kPreparing;
};

// Whether the request is consistent, and whether the GPU can read all generations that it needs.
Status CudaImportJob::CheckRequest() {
  const auto* destination = dynamic_cast<const CudaLocalMemory*>(request_.destination);
  if (destination == nullptr || destination->device().ordinal() != device_->ordinal()) {
    return MakeError(Errc::kInvalidArgument, "import: the destination is not memory of this GPU");
  }
  destination_bases_ = destination->bases();
  to_host_ = destination->kind() == layout::HandleKind::kHostMemfd;
  on_gpu_ = true;
  std::size_t covered = 0;
  std::vector<const ImportRun*> groups;  // one of each source and plan
  table_bound_ = statuses_.size() * sizeof(PairEntry);
  const std::size_t waves = Waves::Count(statuses_.size());
  for (const ImportRun& run : request_.runs) {
    if (dynamic_cast<const CudaPeerMemory*>(run.source) == nullptr || run.plan == nullptr || run.generations == nullptr ||
        run.first != covered || run.count > statuses_.size() - covered) {
      return MakeError(Errc::kInvalidArgument, "import: a run that is not of this backend, or out of order");
    }
    covered += run.count;
    const bool known = std::any_of(groups.begin(), groups.end(),
                                   [&](const ImportRun* other) { return other->source == run.source && other->plan == run.plan; });
    if (!known) {
      groups.push_back(&run);
      table_bound_ += waves * (sizeof(GroupEntry) + run.plan->size() * sizeof(PieceEntry));
    }
    on_gpu_ = on_gpu_ && run.generations->attachment != nullptr;
  }
  if (!request_.prepare && covered != request_.blocks.size()) {
    return MakeError(Errc::kInvalidArgument, "import: runs that don't cover the blocks");
  }
  validates_beside_ = waves > 1 && on_gpu_ && !request_.stream && !request_.background;
  if (!request_.stream) return {};
  const DeviceGuard guard(*device_);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(reinterpret_cast<cudaStream_t>(request_.stream->value), &capture);
  if (error != cudaSuccess) return CudaError(error, "import: the caller's stream");
  if (capture != cudaStreamCaptureStatusNone) return MakeError(Errc::kInvalidArgument, "import: the caller's stream is being captured");
  return {};
}

// The first check of the generations of blocks [submitted_, end): moves submitted_ on to the first
// that is stale already, or to end.
std::vector<TransferRun> CudaImportJob::TakeRuns(std::size_t end) {
  std::vector<TransferRun> runs;
  constexpr std::size_t kAhead = 16;
  for (const ImportRun& run : request_.runs) {
    const std::size_t run_end = std::min(run.first + run.count, end);
    if (run_end <= submitted_) continue;
    const GenerationReader& generations = run.generations->reader;
    const std::size_t first = submitted_;
    for (; submitted_ < run_end; ++submitted_) {
      if (submitted_ + kAhead < run_end) generations.Prefetch(request_.blocks[submitted_ + kAhead].source_block);
      const ImportBlock& block = request_.blocks[submitted_];
      if (!IsReadable(block.generation) || generations.Current(block.source_block) != block.generation) break;
    }
    const auto& source = static_cast<const CudaPeerMemory&>(*run.source);
    const auto* registered = static_cast<const RegisteredMemory*>(run.generations->attachment.get());
    TransferRun transfer;
    transfer.plan = run.plan;
    transfer.source_bases = source.bases();
    transfer.generations = registered == nullptr ? 0 : registered->device_address() + sizeof(GenerationHeader);
    transfer.generation_count = registered == nullptr ? 0 : generations.block_count();
    // To host memory everything crosses PCIe.
    transfer.path = to_host_ ? MemoryPath::kHost : source.path();
    transfer.source = run.source;
    transfer.first = first;
    transfer.count = submitted_ - first;
    if (transfer.count > 0) runs.push_back(transfer);
    if (submitted_ < run_end) {
      stale_found_ = true;
      statuses_[submitted_] = BlockStatus::kStale;
      break;
    }
  }
  return runs;
}

Status CudaImportJob::Submit() {
  if (Status sound = CheckRequest(); !sound) return sound;
  const std::size_t count = statuses_.size();
  Waves waves(count);
  bool more = true;
  while (more) {
    const std::size_t first = submitted_;
    const std::size_t end = on_gpu_ ? waves.NextEnd() : count;
    if (request_.prepare) request_.prepare(request_.blocks, end);
    const std::vector<TransferRun> runs = TakeRuns(end);
    more = !stale_found_ && submitted_ < count;
    if (submitted_ == first) break;
    if (Status enqueued = SubmitWave(runs, first, !more); !enqueued) return enqueued;
  }
  if (!request_.wants_event || phase_ != ImportPhase::kQueueing) return {};
  const DeviceGuard guard(*device_);
  return CudaStatus(RecordEnd(), "import: recording its event");
}

Status CudaImportJob::SubmitWave(std::span<const TransferRun> runs, std::size_t first, bool last_wave) {
  if (!slot_) {
    Result<std::unique_ptr<ImportContext>> slot = slots_->Take();
    if (!slot) return slot.error();
    slot_ = std::move(*slot);
    job_ = slot_->NextJob();
    stream_ = request_.stream ? reinterpret_cast<cudaStream_t>(request_.stream->value) : slot_->stream();
    if (request_.background && !request_.stream) {
      const Result<cudaStream_t> background = slots_->BackgroundStream();
      if (!background) return background.error();
      stream_ = *background;
    }
  }
  CopyLimits limits = device_->limits();
  limits.max_sms = request_.max_sms;
  TransferPlan& plan = slot_->plan();
  if (Status planned = PlanTransfer(runs, request_.blocks, destination_bases_, limits, plan); !planned) return planned;
  const bool fused = last_wave && plan.item_count > 0 && plan.pair_count <= kFusedPairs;
  // Room for all waves at once: what the GPU is using must not move.
  const bool in_launch = fused && first == 0 && !NeedsUpload(plan);
  if (Status room = slot_->Reserve(statuses_.size(), in_launch ? 0 : table_bound_); !room) return room;
  std::memset(slot_->statuses() + first, 0, plan.pair_count);
  order_.insert(order_.end(), plan.order.begin(), plan.order.end());
  return Enqueue(plan, first, fused);
}

Status CudaImportJob::Enqueue(const TransferPlan& plan, std::size_t first, bool fused) {
  const DeviceGuard guard(*device_);
  if (phase_ == ImportPhase::kPreparing) Enter(ImportPhase::kQueueing);
  // Each wave has its own
  std::byte* const own_table = static_cast<std::byte*>(slot_->table()) + table_used_;
  const void* device_table = NeedsUpload(plan) ? own_table : nullptr;
  if (device_table != nullptr) {
    if (Status uploaded = Upload(plan, own_table); !uploaded) return uploaded;
  }
  if (Status copied = QueueEngineCopies(plan, stream_); !copied) return copied;
  table_used_ += plan.table.size();
  CopyArgs args = ArgsOf(plan);
  args.done_value = job_;
  args.statuses = slot_->statuses() + first;
  args.done = slot_->done();
  args.arrivals = slot_->arrivals();
  if (!on_gpu_) {
    args.report = ReportBy::kDoneWord;
  } else if (fused) {
    args.report = ReportBy::kLastBlock;
  } else if (plan.item_count > 0 && device_table == nullptr) {
    args.kept_table = own_table;  // for the validation
  }
  cudaError_t error = cudaSuccess;
  if (plan.item_count > 0 || !on_gpu_) error = LaunchCopy(plan.kernel, args, plan.table, device_table, stream_);
  if (error == cudaSuccess && on_gpu_ && !fused) {
    error = QueueValidation(plan, args, args.kept_table != nullptr ? args.kept_table : device_table);
  }
  return CudaStatus(error, "import: launching the copy");
}

// Beside the copy of the wave before: on the same stream, the link would stand still meanwhile.
Status CudaImportJob::Upload(const TransferPlan& plan, std::byte* own_table) {
  uploads_ = true;
  if (Status queued = QueueTable(plan, slot_->staged_table() + table_used_, own_table, slot_->upload_stream()); !queued) return queued;
  return CudaStatus(QueueUploadsBefore(stream_), "import: uploading the table");
}

// What is queued on `stream` from now on follows the uploads queued so far.
cudaError_t CudaImportJob::QueueUploadsBefore(cudaStream_t stream) {
  const cudaError_t error = cudaEventRecord(slot_->uploaded(), slot_->upload_stream());
  return error == cudaSuccess ? cudaStreamWaitEvent(stream, slot_->uploaded(), 0) : error;
}

cudaError_t CudaImportJob::QueueValidation(const TransferPlan& plan, const CopyArgs& args, const void* device_table) {
  cudaStream_t stream = stream_;
  if (validates_beside_) {
    stream = slot_->validation_stream();
    cudaError_t error = cudaEventRecord(slot_->copied(), stream_);
    if (error == cudaSuccess) error = cudaStreamWaitEvent(stream, slot_->copied(), 0);
    if (error != cudaSuccess) return error;
  }
  CopyLimits limits = device_->limits();
  limits.max_sms = request_.max_sms;
  return LaunchValidate(ValidationBlocks(plan.pair_count, limits), args, plan.table, device_table, stream);
}

// Records the slot's event behind all that has been queued.
cudaError_t CudaImportJob::RecordEnd() {
  // Also an upload that no copy follows, since what was queued behind it failed
  cudaError_t error = uploads_ ? QueueUploadsBefore(stream_) : cudaSuccess;
  if (error != cudaSuccess) return error;
  if (!validates_beside_) return cudaEventRecord(slot_->event(), stream_);
  error = cudaEventRecord(slot_->copied(), stream_);
  if (error == cudaSuccess) error = cudaStreamWaitEvent(slot_->validation_stream(), slot_->copied(), 0);
  return error == cudaSuccess ? cudaEventRecord(slot_->event(), slot_->validation_stream()) : error;
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

std::unique_ptr<ImportJob> StartCudaImport(std::shared_ptr<const CudaDevice> device, std::shared_ptr<ImportContexts> slots,
                                           ImportRequest request) {
  const bool callers_stream = request.stream.has_value();
  const std::chrono::milliseconds patience = request.patience;
  auto job = std::make_unique<CudaImportJob>(std::move(device), std::move(slots), std::move(request));
  job->Start();
  if (!callers_stream) return job;
  return EndedByReaper(std::move(job), patience);
}

}  // namespace kvm
