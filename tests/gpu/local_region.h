// A region of this process for GPU tests: memory of a backend, generations, and the view that
// imports read.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cuda/devices.h"
#include "tests/catch.h"
#include "tests/gpu/exporter.h"
#include "tests/gpu/pattern.h"

namespace kvm::test {

// Leaves the test visibly where there are fewer GPUs.
#define KVM_NEED_GPUS(count)                                       \
  do {                                                             \
    const std::string kvm_missing = kvm::test::MissingGpus(count); \
    if (!kvm_missing.empty()) KVM_SKIP(kvm_missing);               \
  } while (false)

// Why there are fewer than `count` usable GPUs; empty if there are enough.
inline std::string MissingGpus(int count) {
  std::string why;
  const int gpus = UsableGpus(why);
  if (gpus >= count) return {};
  return gpus == 0 ? why : "needs " + std::to_string(count) + " GPUs, this machine has " + std::to_string(gpus);
}

inline std::shared_ptr<MemoryBackend> BackendOf(int ordinal) {
  const Result<std::vector<DeviceInfo>> devices = ListDevices();
  KVM_REQUIRE_OK(devices);
  MustSucceed(cudaSetDevice(ordinal), "cudaSetDevice");
  Result<std::shared_ptr<MemoryBackend>> backend = MakeCudaBackend(devices->at(static_cast<std::size_t>(ordinal)).uuid);
  KVM_REQUIRE_OK(backend);
  return *backend;
}

inline std::vector<std::byte*> BasesOf(const LocalMemory& memory) {
  std::vector<std::byte*> bases;
  for (std::size_t i = 0; i < memory.handles().size(); ++i) bases.push_back(memory.SegmentData(i));
  return bases;
}

// One segment's bytes on the CPU.
inline std::vector<std::byte> Download(MemoryBackend& backend, const LocalMemory& memory, std::size_t segment) {
  std::vector<std::byte> bytes(memory.handles()[segment].size_bytes);
  KVM_REQUIRE_OK(backend.ReadBytes(memory, segment, 0, bytes));
  return bytes;
}

class LocalRegion {
 public:
  LocalRegion(std::shared_ptr<MemoryBackend> backend_, Geometry geometry_, const std::vector<std::uint64_t>& segment_bytes)
      : backend(std::move(backend_)), geometry(std::move(geometry_)) {
    Result<std::unique_ptr<LocalMemory>> made = backend->Allocate("test", segment_bytes);
    KVM_REQUIRE_OK(made);
    memory = std::move(*made);
    Result<OwnedMemory> table = OwnedMemory::Create("test:generations", GenerationTableBytes(geometry.block_count));
    KVM_REQUIRE_OK(table);
    generation_memory = std::move(*table);
    writer = GenerationWriter::Format({generation_memory.data(), generation_memory.size()}, geometry.block_count);
    Result<PeerGenerations> mapped = MapGenerations(generation_memory.fd(), geometry.block_count);
    KVM_REQUIRE_OK(mapped);
    generations = std::move(*mapped);
    Result<std::unique_ptr<PeerMemory>> viewed = backend->View(*memory);
    KVM_REQUIRE_OK(viewed);
    view = std::move(*viewed);
  }

  // Makes all blocks readable as generation 2, with the pattern's bytes.
  void Fill() {
    Pattern pattern(geometry, BasesOf(*memory));
    std::vector<PatternBlock> blocks;
    for (std::uint32_t b = 0; b < geometry.block_count; ++b) blocks.push_back({b, b, writer.BeginWrite(b) + 1});
    pattern.Fill(blocks);
    for (const PatternBlock& block : blocks) REQUIRE(writer.FinishWrite(block.block, block.generation - 1));
  }

  std::shared_ptr<MemoryBackend> backend;
  Geometry geometry;
  std::unique_ptr<LocalMemory> memory;
  std::unique_ptr<PeerMemory> view;
  OwnedMemory generation_memory;
  GenerationWriter writer;
  PeerGenerations generations;
};

inline ImportRequest RequestOf(const LocalMemory& destination, const PeerMemory& source, const PeerGenerations& generations,
                               const CopyPlan& plan, std::vector<ImportBlock> blocks) {
  ImportRequest request;
  request.destination = &destination;
  request.runs.push_back({&source, &generations, &plan, 0, blocks.size()});
  request.blocks = std::move(blocks);
  return request;
}

inline std::vector<BlockStatus> StatusesOf(ImportJob& job) {
  REQUIRE(job.Wait(std::chrono::steady_clock::now() + std::chrono::seconds(30)));
  return {job.statuses().begin(), job.statuses().end()};
}

inline bool AllValid(const std::vector<BlockStatus>& statuses) {
  return std::all_of(statuses.begin(), statuses.end(), [](BlockStatus status) { return status == BlockStatus::kValid; });
}

}  // namespace kvm::test
