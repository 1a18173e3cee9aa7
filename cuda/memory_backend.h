// MemoryBackend: the data plane of libkvclient: memory that can be exported, mapped and copied.
//
// Code above this interface does not know which kind of memory it moves. A backend is a stateless,
// thread-safe factory; each class that it makes documents its own thread-safety. The backend
// validates copies, since only it knows when they have completed: it checks the generation before
// and after the copy (I2: an entry is a hint, the generation decides).
//
// The same three things have different names in each layer:
//   libkvclient                   here              CUDA backend
//   BlockSource, block of a match ImportBlock       PairEntry
//   run of blocks, one source     ImportRun         GroupEntry
//   GeometryPart                  CopyPlan          PieceEntry
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cuda/copy_plan.h"
#include "kvm/device.h"
#include "kvm/error.h"
#include "kvm/geometry.h"
#include "proto/base/unique_fd.h"
#include "proto/shm/generation_table.h"
#include "proto/shm/layout.h"
#include "proto/shm/sealed_memory.h"

namespace kvm {

using SteadyTime = std::chrono::steady_clock::time_point;

// One allocation, as it travels through kvmd.
struct SegmentHandle {
  std::uint64_t size_bytes = 0;
  std::string handle;  // cuda_ipc: 64 opaque bytes; else empty
  // cuda_ipc, cuda_vmm_fd: from the allocation's base to the segment
  std::uint64_t handle_offset = 0;
  // cuda_ipc: differs for every allocation ever made, whereas CUDA reuses handles
  std::uint64_t allocation = 0;
  std::uint64_t allocation_bytes = 0;  // cuda_vmm_fd: of the whole allocation
  UniqueFd fd;                         // host_memfd, cuda_vmm_fd
};

// A region's memory in its owner's process. Frees or unmaps on destruction.
class LocalMemory {
 public:
  virtual ~LocalMemory() = default;
  virtual layout::HandleKind kind() const noexcept = 0;
  virtual std::span<const SegmentHandle> handles() const noexcept = 0;
  virtual std::byte* SegmentData(std::size_t segment) const noexcept = 0;  // host or device address
};

// A peer's region mapped into this process, read-only. Unmaps on destruction.
class PeerMemory {
 public:
  virtual ~PeerMemory() = default;
  virtual MemoryPath path() const noexcept = 0;
  // Whether the mapping itself refuses stores; if not, detail() says why.
  virtual bool read_only() const noexcept = 0;
  virtual const std::string& detail() const noexcept = 0;  // for operators; may be empty
  // Whether the CPU has read memory that was lost (proto/shm/memory_guard.h). Then no import from
  // it is valid any more.
  virtual bool lost() const noexcept { return false; }
};

// Where a peer's segments come from.
struct PeerOrigin {
  layout::HandleKind kind = layout::HandleKind::kHostMemfd;
  DeviceUuid device{};  // of the owner; zeros for host memory
};

// The mapping of a region's generation table, and the reader of it.
struct PeerGenerations {
  MappedMemory memory;
  GenerationReader reader;
  // A backend's registration of `memory`; destroyed before it
  std::shared_ptr<const void> attachment{};
};

// Maps a region's generation table and checks that it is one of `block_count` blocks. `fd` may be
// closed afterwards. kPermissionDenied, kInvalidArgument, kSystem; kProtocol, kVersionMismatch: not
// such a table.
[[nodiscard]] Result<PeerGenerations> MapGenerations(int fd, std::uint32_t block_count, HugePages huge = HugePages::kNever);

enum class BlockStatus : std::uint8_t {
  kPending = 0,
  kValid = 1,         // copied; the generation was right before and after
  kStale = 2,         // the block was rewritten, before or during the copy
  kBehindFailed = 3,  // an earlier block of the same match failed
  kDeadline = 4,      // not copied in time
  kError = 5,         // the copy itself failed
};

// One run of blocks from one source.
struct ImportRun {
  const PeerMemory* source = nullptr;
  const PeerGenerations* generations = nullptr;
  const CopyPlan* plan = nullptr;
  std::size_t first = 0;  // of ImportRequest::blocks
  std::size_t count = 0;
};

// The number of blocks in `runs`, which cover them in order.
inline std::size_t BlocksOf(std::span<const ImportRun> runs) noexcept { return runs.empty() ? 0 : runs.back().first + runs.back().count; }

struct ImportBlock {
  std::uint32_t source_block;
  std::uint32_t destination_block;
  Generation generation;  // what the source must have, before and after
};

struct ImportRequest {
  const LocalMemory* destination = nullptr;
  std::vector<ImportRun> runs;      // cover all blocks in order
  std::vector<ImportBlock> blocks;  // in prefix order; all of them, unless there is a `prepare`
  // Makes the blocks by part, so that a long list's first part is copied while the next is made.
  // Import calls it, in the calling thread, before it looks at or writes to a block below `end`,
  // with rising ends of at most the number of blocks that the runs cover; it extends `blocks` to
  // that size. Not called behind a block that is stale before the copy. Must not throw.
  std::function<void(std::vector<ImportBlock>& blocks, std::size_t end)> prepare;
  std::shared_ptr<const void> keep;  // objects that must live until the job is done
  SteadyTime deadline = SteadyTime::max();
  // The rest has no effect on host memory.
  // Copy in this stream's order; default: a stream of the backend
  std::optional<StreamHandle> stream;
  // Multiprocessors the copy may occupy; 0: as many as it takes
  unsigned max_sms = 0;
  bool wants_event = false;                  // ImportJob::event()
  bool background = false;                   // other work of the GPU comes first; not with `stream`
  std::chrono::milliseconds patience{2000};  // with `stream`: how long the job's destructor waits
};

// A copy under way. Not thread-safe. Destruction waits for copies that were started. A copy on a
// stream of the caller that is not done within ImportRequest::patience goes on after the
// destruction, and its memory stays mapped until it ends.
class ImportJob {
 public:
  virtual ~ImportJob() = default;
  virtual bool Done() noexcept = 0;
  virtual bool Wait(SteadyTime deadline) noexcept = 0;  // Done(), waiting at most until `deadline`
  // A cudaEvent_t that completes once copy and validation have; null unless
  // ImportRequest::wants_event. Lives as long as the job. Work ordered after it sees the copied
  // bytes, but not whether they are valid.
  virtual void* event() const noexcept { return nullptr; }
  // Once done: one status per block of the request; all blocks behind a failed one have failed.
  virtual std::span<const BlockStatus> statuses() const noexcept = 0;
};

class MemoryBackend {
 public:
  virtual ~MemoryBackend() = default;

  // Kind of the memory that Allocate makes
  virtual layout::HandleKind kind() const noexcept = 0;
  virtual DeviceUuid device_uuid() const noexcept = 0;            // zeros for host memory
  virtual bool Maps(layout::HandleKind kind) const noexcept = 0;  // whether Map takes such segments

  // Makes exportable memory, one allocation per size. kResourceExhausted, kSystem.
  [[nodiscard]] virtual Result<std::unique_ptr<LocalMemory>> Allocate(const std::string& name,
                                                                      std::span<const std::uint64_t> segment_bytes) = 0;
  // Exports memory that the caller allocated, one segment per range: cuda_vmm_fd for memory of
  // AllocateExportable (kvm/exportable_memory.h), else cuda_ipc, which the caller keeps allocated
  // while the result lives.
  // kInvalidArgument: not device memory of this GPU, or the range leaves its allocation.
  // kUnsupported: this memory can't be exported; the message says which can.
  [[nodiscard]] virtual Result<std::unique_ptr<LocalMemory>> Register(std::span<const DeviceRange> ranges) = 0;
  // Takes over existing segments with their contents: memory that kvmd granted (host_memfd), or
  // that of a dead owner.
  // kPermissionDenied, kInvalidArgument, kUnsupported (another kind of memory), kSystem.
  [[nodiscard]] virtual Result<std::unique_ptr<LocalMemory>> Take(std::vector<SegmentHandle> segments) = 0;
  // Maps a peer's segments (consumes the descriptors). kPermissionDenied, kInvalidArgument,
  // kSystem; kUnsupported: this GPU can't reach them, or the owner's GPU isn't visible to this
  // process.
  // kUnavailable: memory that the owner has freed is still mapped under the same handle; the caller
  // tries again later.
  [[nodiscard]] virtual Result<std::unique_ptr<PeerMemory>> Map(std::vector<SegmentHandle> segments, const PeerOrigin& origin = {}) = 0;
  // Maps host memory that kvmd granted to this process, so that Import can copy this backend's
  // memory to it. Consumes the descriptor. kPermissionDenied, kInvalidArgument, kSystem;
  // kUnsupported: this GPU can't write it.
  [[nodiscard]] virtual Result<std::unique_ptr<LocalMemory>> MapGranted(SegmentHandle segment) = 0;
  // A PeerMemory of memory that this process owns itself. `memory` must outlive the result.
  [[nodiscard]] virtual Result<std::unique_ptr<PeerMemory>> View(const LocalMemory& memory) = 0;
  // Lets the GPU read a generation table. After an error imports still work: the CPU validates them
  // then.
  [[nodiscard]] virtual Status AttachGenerations(PeerGenerations& generations) = 0;
  // Starts copying. Never fails as a whole: the status of a block says whether it was copied. There
  // are as many statuses as blocks in the runs.
  [[nodiscard]] virtual std::unique_ptr<ImportJob> Import(ImportRequest request) = 0;

  // Runs `action` once everything queued on `stream` so far has completed, on a thread of the
  // backend, without delaying the stream or the caller; `action` must not call CUDA, block or
  // throw. If the GPU fails first, `action` is dropped without a call. For host memory, `action` is
  // called at once.
  [[nodiscard]] virtual Status RunAfter(StreamHandle stream, std::function<void()> action) = 0;

  // Content checksum of each block: a function of its bytes in geometry order, independent of their
  // division into chunks and of the kind of memory (cuda/host/checksum.h). Waits for the result.
  [[nodiscard]] virtual Result<std::vector<std::uint64_t>> Checksum(const LocalMemory& memory, const Geometry& geometry,
                                                                    std::span<const std::uint32_t> blocks) = 0;
  // Copies bytes into and out of a region of this process; waits for the copy. kInvalidArgument:
  // out of range.
  [[nodiscard]] virtual Status WriteBytes(const LocalMemory& memory, std::size_t segment, std::uint64_t offset,
                                          std::span<const std::byte> bytes) = 0;
  [[nodiscard]] virtual Status ReadBytes(const LocalMemory& memory, std::size_t segment, std::uint64_t offset,
                                         std::span<std::byte> bytes) = 0;
};

// For backends: checks a range of bytes. kInvalidArgument: the bytes are not all inside the
// segment.
[[nodiscard]] Status CheckRange(const LocalMemory& memory, std::size_t segment, std::uint64_t offset, std::uint64_t bytes);

// Host memory in sealed memfds. Import copies in the calling thread and is done when it returns.
std::shared_ptr<MemoryBackend> MakeHostBackend();

}  // namespace kvm
