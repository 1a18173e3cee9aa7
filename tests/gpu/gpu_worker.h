// A worker on a GPU, as an engine would be one, whose blocks say what they are: contents are
// tests/gpu/pattern.h of a tag and a version, keys a function of the same two, so that every import
// can be compared with its key.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvclient/kvclient.h"
#include "proto/shm/layout.h"
#include "tests/gpu/pattern.h"
#include "tests/support/data/geometries.h"

namespace kvm::test {

struct Content {
  std::uint32_t tag = 0;
  std::uint64_t version = 2;
};
BlockKey KeyOf(const Content& content);

struct GpuWorkerOptions {
  std::string socket = {};
  std::string name = "worker";
  int ordinal = 0;
  // kCudaIpc: cudaMalloc memory, registered
  layout::HandleKind kind = layout::HandleKind::kCudaVmmFd;
  NamedGeometry layout = {};
  bool checksums = false;
  bool exportable = false;      // memory of AllocateExportable, registered; `kind` is not used
  bool adopt = false;           // what a dead worker of this name left; else as Start says
  bool one_allocation = false;  // registered memory: all segments are ranges of one allocation
};

// On the first GPU, a contiguous pool.
GpuWorkerOptions PoolOptions(const std::string& socket, const std::string& name, std::uint32_t blocks, std::uint64_t block_bytes);

struct GpuImportCheck {
  std::size_t matched = 0, valid = 0;
  std::size_t wrong = 0;  // of the valid ones: must be 0
  std::vector<FailedBlock> failed;
};

class GpuWorker {
 public:
  static Result<std::unique_ptr<GpuWorker>> Start(GpuWorkerOptions options);
  ~GpuWorker();
  GpuWorker(const GpuWorker&) = delete;
  GpuWorker& operator=(const GpuWorker&) = delete;

  Client& client() { return *client_; }
  const std::vector<AdoptedBlock>& adopted() const { return adopted_; }
  Region& region() { return *region_; }
  const Model& model() const { return model_; }
  Pattern& pattern() { return *pattern_; }

  // Begins writes of the blocks, writes `contents` there, waits for the GPU. What to publish.
  std::vector<PublishRequest> Write(std::span<const Content> contents, std::span<const std::uint32_t> blocks);
  // That, and publishes and flushes.
  Status Publish(std::span<const Content> contents, std::uint32_t first_block);

  Match Find(std::span<const Content> contents);
  GpuImportCheck Import(const Match& match, std::span<const Content> contents, std::uint32_t first_block,
                        const ImportOptions& options = {});
  // Those of blocks first_block, … that don't hold `contents`.
  std::size_t CountWrong(std::span<const Content> contents, std::uint32_t first_block);

 private:
  GpuWorker() = default;
  std::byte* AllocateForRegistering(const GpuWorkerOptions& options, std::uint64_t bytes);

  GpuWorkerOptions options_;
  std::vector<std::shared_ptr<void>> allocations_;  // freed after the region
  std::shared_ptr<Client> client_;
  Model model_;
  std::shared_ptr<Region> region_;
  std::vector<AdoptedBlock> adopted_;
  std::unique_ptr<Pattern> pattern_;
};

// [first, first + count) of version 2.
std::vector<Content> Contents(std::uint32_t first, std::uint32_t count);
DeviceUuid UuidOfOrdinal(int ordinal);

}  // namespace kvm::test
