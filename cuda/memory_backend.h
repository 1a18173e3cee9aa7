// The data plane behind libkvclient: memory that can be exported, mapped and copied.
//
// Nothing above this interface knows what kind of memory it moves. A backend is a stateless factory
// (thread-safe); the objects it makes say for themselves. Copies are validated by the backend, since
// only it knows when they have completed: generation check before, copy, generation check after (I2).
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cuda/copy_plan.h"
#include "kvm/error.h"
#include "kvm/geometry.h"
#include "proto/generation_table.h"
#include "proto/layout.h"
#include "proto/sealed_memory.h"
#include "proto/unique_fd.h"

namespace kvm {

using SteadyTime = std::chrono::steady_clock::time_point;

// One allocation, as it travels through kvmd.
struct SegmentHandle {
  std::uint64_t size_bytes = 0;
  std::string handle;               // cuda_ipc: 64 opaque bytes; else empty
  std::uint64_t handle_offset = 0;  // cuda_ipc: from the allocation's base to the segment
  UniqueFd fd;                      // host_memfd, cuda_vmm_fd
};

// A region's memory in its owner's process. Frees or unmaps on destruction.
class LocalMemory {
 public:
  virtual ~LocalMemory() = default;
  virtual std::span<const SegmentHandle> handles() const noexcept = 0;
  virtual std::byte* SegmentData(std::size_t segment) const noexcept = 0;  // host or device address
};

// A peer's region mapped into this process, read-only. Unmaps on destruction.
class PeerMemory {
 public:
  virtual ~PeerMemory() = default;
};

// Owner of the mapping of a region's generation table, and what reads it.
struct PeerGenerations {
  MappedMemory memory;
  GenerationReader reader;
};

enum class BlockStatus : std::uint8_t {
  kPending = 0,
  kValid = 1,         // copied; the generation was right before and after
  kStale = 2,         // the generation had moved on, before or during the copy
  kBehindFailed = 3,  // an earlier block of the same match failed (I8)
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

struct ImportBlock {
  std::uint32_t source_block;
  std::uint32_t destination_block;
  Generation generation;  // what the source must have, before and after
};

enum class Validation {
  kBeforeAndAfter,
  kNone,  // for tests that must be able to fail; libkvclient never uses it
};

struct ImportRequest {
  const LocalMemory* destination = nullptr;
  std::vector<ImportRun> runs;       // cover `blocks` in order
  std::vector<ImportBlock> blocks;   // in prefix order
  std::shared_ptr<const void> keep;  // whatever must live until the job is done
  SteadyTime deadline = SteadyTime::max();
  Validation validation = Validation::kBeforeAndAfter;
};

// A copy under way. Not thread-safe. Destruction waits for copies that were started.
class ImportJob {
 public:
  virtual ~ImportJob() = default;
  virtual bool Done() noexcept = 0;
  virtual bool Wait(SteadyTime deadline) noexcept = 0;  // Done(), waiting at most until `deadline`
  // Once done: one status per block of the request, with everything behind a failure failed.
  virtual std::span<const BlockStatus> statuses() const noexcept = 0;
};

class MemoryBackend {
 public:
  virtual ~MemoryBackend() = default;

  virtual layout::HandleKind kind() const noexcept = 0;
  virtual std::array<std::uint8_t, 16> device_uuid() const noexcept = 0;  // zeros for host memory

  // Makes exportable memory, one allocation per size. kResourceExhausted, kSystem.
  [[nodiscard]] virtual Result<std::unique_ptr<LocalMemory>> Allocate(const std::string& name,
                                                                      std::span<const std::uint64_t> segment_bytes) = 0;
  // Maps a peer's segments (consumes the descriptors). kPermissionDenied, kInvalidArgument, kSystem.
  [[nodiscard]] virtual Result<std::unique_ptr<PeerMemory>> Map(std::vector<SegmentHandle> segments) = 0;
  // The same view of memory that this process owns itself. `memory` must outlive the result.
  [[nodiscard]] virtual Result<std::unique_ptr<PeerMemory>> View(const LocalMemory& memory) = 0;
  // Starts copying. Never fails as a whole: what can't be copied has a status that says so.
  [[nodiscard]] virtual std::unique_ptr<ImportJob> Import(ImportRequest request) = 0;
};

// Host memory in sealed memfds. Import copies in the calling thread and is done when it returns.
std::shared_ptr<MemoryBackend> MakeHostBackend();

}  // namespace kvm
