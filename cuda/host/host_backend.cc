// Host memory: regions are sealed memfds, copies are memcpy by the calling thread, block by block,
// each followed by its generation check, so that a rewritten block is noticed before the next one
// is copied.
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda/host/checksum.h"
#include "cuda/memory_backend.h"
#include "proto/base/fault_point.h"
#include "proto/base/fault_switch.h"
#include "proto/base/sanitizers.h"

namespace kvm {
namespace {

class HostLocalMemory final : public LocalMemory {
 public:
  layout::HandleKind kind() const noexcept override { return layout::HandleKind::kHostMemfd; }
  std::span<const SegmentHandle> handles() const noexcept override { return handles_; }
  std::byte* SegmentData(std::size_t segment) const noexcept override { return segments_[segment].data(); }

  Status Add(const std::string& name, std::uint64_t size_bytes) { return Add(OwnedMemory::Create(name, size_bytes)); }
  Status Add(Result<OwnedMemory> memory) {
    if (!memory) return memory.error();
    SegmentHandle handle;
    handle.size_bytes = memory->size();
    handle.fd.Reset(::fcntl(memory->fd(), F_DUPFD_CLOEXEC, 0));
    if (!handle.fd) return SystemError("dup of a memory's descriptor");
    segments_.push_back(std::move(*memory));
    handles_.push_back(std::move(handle));
    return {};
  }

  Status Take(SegmentHandle handle) {
    Result<OwnedMemory> memory = OwnedMemory::Take(std::move(handle.fd), handle.size_bytes, HugePages::kLater);
    if (!memory) return memory.error();
    memory->Guard();  // another process has written it before
    segments_.push_back(std::move(*memory));
    handles_.push_back(std::move(handle));
    return {};
  }

  // Whether bytes that were written to granted memory may have been lost.
  bool lost() const noexcept {
    return std::any_of(segments_.begin(), segments_.end(), [](const OwnedMemory& memory) { return memory.lost(); });
  }

 private:
  std::vector<OwnedMemory> segments_;
  std::vector<SegmentHandle> handles_;
};

class HostPeerMemory final : public PeerMemory {
 public:
  MemoryPath path() const noexcept override { return MemoryPath::kSameDevice; }
  bool read_only() const noexcept override { return true; }
  const std::string& detail() const noexcept override { return detail_; }

  std::vector<const std::byte*> bases;
  std::vector<MappedMemory> mappings;  // empty for a view of this process's own memory

  bool lost() const noexcept override {
    return std::any_of(mappings.begin(), mappings.end(), [](const MappedMemory& memory) { return memory.lost(); });
  }

 private:
  std::string detail_;
};

class FinishedJob final : public ImportJob {
 public:
  explicit FinishedJob(std::vector<BlockStatus> statuses) : statuses_(std::move(statuses)) {}
  bool Done() noexcept override { return true; }
  bool Wait(SteadyTime) noexcept override { return true; }
  std::span<const BlockStatus> statuses() const noexcept override { return statuses_; }

 private:
  std::vector<BlockStatus> statuses_;
};

// Imports from this size on bypass the cache on their way out, as a large memcpy does: the
// destination does not fit into the cache, and a store that does not read it first saves a third of
// the memory traffic.
constexpr std::uint64_t kStreamFromBytes = std::uint64_t{8} << 20;

// The source may be rewritten meanwhile. The generation check then rejects the bytes, so the race
// is harmless.
#if defined(KVM_THREAD_SANITIZER)
KVM_RACES_ON_PURPOSE void CopyBytes(std::byte* to, const std::byte* from, std::size_t bytes, bool) {
  for (std::size_t i = 0; i < bytes; ++i) to[i] = from[i];
}
#elif defined(__SSE2__)
void CopyBytes(std::byte* to, const std::byte* from, std::size_t bytes, bool stream) {
  if (!stream || reinterpret_cast<std::uintptr_t>(to) % 16 != 0) {
    std::memcpy(to, from, bytes);
    return;
  }
  std::size_t at = 0;
  for (; at + 64 <= bytes; at += 64) {
    const auto* source = reinterpret_cast<const __m128i*>(from + at);
    auto* destination = reinterpret_cast<__m128i*>(to + at);
    __builtin_prefetch(from + at + 512);
    const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1), c = _mm_loadu_si128(source + 2),
                  d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(destination, a);
    _mm_stream_si128(destination + 1, b);
    _mm_stream_si128(destination + 2, c);
    _mm_stream_si128(destination + 3, d);
  }
  std::memcpy(to + at, from + at, bytes - at);
  // Only this fence orders streaming stores; the release store of the block's publish does not.
  _mm_sfence();
}
#else
void CopyBytes(std::byte* to, const std::byte* from, std::size_t bytes, bool) { std::memcpy(to, from, bytes); }
#endif

// Whether bytes copied before this call may be wrong because memory of source or destination was
// lost. Losses are rare, so this is mostly one load.
bool AnyLost(const HostPeerMemory& source, const LocalMemory& destination) {
  if (MemoryGuard::losses() == 0) return false;
  const auto* host = dynamic_cast<const HostLocalMemory*>(&destination);
  return source.lost() || (host != nullptr && host->lost());
}

BlockStatus CopyBlock(const ImportRequest& request, const ImportRun& run, const ImportBlock& block, bool stream) {
  const GenerationReader& generations = run.generations->reader;
  const bool unchecked = KVM_FAULT_SWITCH(import_without_validation);
  const bool valid = IsReadable(block.generation) && generations.Current(block.source_block) == block.generation;
  if (!valid && !unchecked) return BlockStatus::kStale;
  const auto& source = static_cast<const HostPeerMemory&>(*run.source);
  for (const CopyPiece& piece : *run.plan) {
    CopyBytes(request.destination->SegmentData(piece.destination_segment) + piece.destination_offset +
                  block.destination_block * piece.destination_stride,
              source.bases[piece.source_segment] + piece.source_offset + block.source_block * piece.source_stride, piece.bytes, stream);
  }
  KVM_FAULT_POINT(client_block_copied);
  if (AnyLost(source, *request.destination)) return BlockStatus::kError;
  return unchecked || generations.StillValid(block.source_block, block.generation) ? BlockStatus::kValid : BlockStatus::kStale;
}

class HostBackend final : public MemoryBackend {
 public:
  layout::HandleKind kind() const noexcept override { return layout::HandleKind::kHostMemfd; }
  DeviceUuid device_uuid() const noexcept override { return {}; }
  bool Maps(layout::HandleKind kind) const noexcept override { return kind == layout::HandleKind::kHostMemfd; }

  Result<std::unique_ptr<LocalMemory>> Allocate(const std::string& name, std::span<const std::uint64_t> segment_bytes) override {
    auto memory = std::make_unique<HostLocalMemory>();
    for (const std::uint64_t bytes : segment_bytes) {
      if (Status added = memory->Add("kvm:" + name, bytes); !added) return added.error();
    }
    return std::unique_ptr<LocalMemory>(std::move(memory));
  }

  Result<std::unique_ptr<LocalMemory>> Register(std::span<const DeviceRange>) override {
    return MakeError(Errc::kUnsupported, "host memory can't be registered: let libkvclient allocate it");
  }

  Result<std::unique_ptr<LocalMemory>> Take(std::vector<SegmentHandle> segments) override {
    auto memory = std::make_unique<HostLocalMemory>();
    for (SegmentHandle& segment : segments) {
      if (Status added = memory->Add(OwnedMemory::Take(std::move(segment.fd), segment.size_bytes)); !added) return added.error();
    }
    return std::unique_ptr<LocalMemory>(std::move(memory));
  }

  Result<std::unique_ptr<PeerMemory>> Map(std::vector<SegmentHandle> segments, const PeerOrigin& origin) override {
    if (!Maps(origin.kind)) return MakeError(Errc::kUnsupported, "GPU memory can't be mapped by a host worker");
    auto memory = std::make_unique<HostPeerMemory>();
    for (const SegmentHandle& segment : segments) {
      Result<MappedMemory> mapped = MappedMemory::Attach(segment.fd.get(), segment.size_bytes);
      if (!mapped) return mapped.error();
      memory->bases.push_back(mapped->data());
      memory->mappings.push_back(std::move(*mapped));
    }
    return std::unique_ptr<PeerMemory>(std::move(memory));
  }

  Result<std::unique_ptr<LocalMemory>> MapGranted(SegmentHandle segment) override {
    auto memory = std::make_unique<HostLocalMemory>();
    if (Status taken = memory->Take(std::move(segment)); !taken) return taken.error();
    return std::unique_ptr<LocalMemory>(std::move(memory));
  }

  Result<std::unique_ptr<PeerMemory>> View(const LocalMemory& local) override {
    auto memory = std::make_unique<HostPeerMemory>();
    for (std::size_t i = 0; i < local.handles().size(); ++i) memory->bases.push_back(local.SegmentData(i));
    return std::unique_ptr<PeerMemory>(std::move(memory));
  }

  Status AttachGenerations(PeerGenerations&) override { return {}; }

  std::unique_ptr<ImportJob> Import(ImportRequest request) override {
    const std::size_t count = BlocksOf(request.runs);
    if (request.prepare) request.prepare(request.blocks, count);
    std::vector<BlockStatus> statuses(count, BlockStatus::kPending);
    std::uint64_t block_bytes = 0;
    if (!request.runs.empty()) {
      for (const CopyPiece& piece : *request.runs.front().plan) block_bytes += piece.bytes;
    }
    const bool stream = block_bytes * count >= kStreamFromBytes;
    bool failed = false;
    for (const ImportRun& run : request.runs) {
      for (std::size_t i = run.first; i < run.first + run.count; ++i) {
        if (failed) {
          statuses[i] = BlockStatus::kBehindFailed;
        } else if (request.deadline != SteadyTime::max() && std::chrono::steady_clock::now() >= request.deadline) {
          statuses[i] = BlockStatus::kDeadline;
        } else {
          statuses[i] = CopyBlock(request, run, request.blocks[i], stream);
        }
        failed = failed || statuses[i] != BlockStatus::kValid;
      }
    }
    return std::make_unique<FinishedJob>(std::move(statuses));
  }

  Status RunAfter(StreamHandle, std::function<void()> action) override {
    action();
    return {};
  }

  Result<std::vector<std::uint64_t>> Checksum(const LocalMemory& memory, const Geometry& geometry,
                                              std::span<const std::uint32_t> blocks) override {
    std::vector<const std::byte*> bases;
    for (std::size_t i = 0; i < memory.handles().size(); ++i) bases.push_back(memory.SegmentData(i));
    std::vector<std::uint64_t> sums;
    for (const std::uint32_t block : blocks) {
      if (block >= geometry.block_count) return MakeError(Errc::kInvalidArgument, "checksum: block " + std::to_string(block));
      sums.push_back(ChecksumBlock(geometry, bases, block));
    }
    return sums;
  }

  Status WriteBytes(const LocalMemory& memory, std::size_t segment, std::uint64_t offset, std::span<const std::byte> bytes) override {
    if (Status inside = CheckRange(memory, segment, offset, bytes.size()); !inside) return inside;
    std::memcpy(memory.SegmentData(segment) + offset, bytes.data(), bytes.size());
    return {};
  }

  Status ReadBytes(const LocalMemory& memory, std::size_t segment, std::uint64_t offset, std::span<std::byte> bytes) override {
    if (Status inside = CheckRange(memory, segment, offset, bytes.size()); !inside) return inside;
    std::memcpy(bytes.data(), memory.SegmentData(segment) + offset, bytes.size());
    return {};
  }
};

}  // namespace

Result<PeerGenerations> MapGenerations(int fd, std::uint32_t block_count, HugePages huge) {
  Result<MappedMemory> table = MappedMemory::Attach(fd, GenerationTableBytes(block_count), huge);
  if (!table) return table.error();
  Result<GenerationReader> reader = GenerationReader::Open({table->data(), table->size()}, block_count);
  if (!reader) return reader.error();
  PeerGenerations generations;
  generations.memory = std::move(*table);
  generations.reader = *reader;
  return generations;
}

Status CheckRange(const LocalMemory& memory, std::size_t segment, std::uint64_t offset, std::uint64_t bytes) {
  if (segment >= memory.handles().size())
    return MakeError(Errc::kInvalidArgument, "segment " + std::to_string(segment) + " does not exist");
  const std::uint64_t size = memory.handles()[segment].size_bytes;
  if (offset > size || bytes > size - offset) {
    return MakeError(Errc::kInvalidArgument, "bytes " + std::to_string(offset) + "+" + std::to_string(bytes) + " leave segment " +
                                                 std::to_string(segment) + ", which has " + std::to_string(size));
  }
  return {};
}

std::shared_ptr<MemoryBackend> MakeHostBackend() { return std::make_shared<HostBackend>(); }

}  // namespace kvm
