// Exporters and importers of the GPU marketplace that run at full speed until their input closes,
// in processes of their own or in this one; every byte that an import calls valid is compared with
// its key.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/peers/peers.h"
#include "cuda/memory_backend.h"
#include "tests/gpu/gpu_worker.h"
#include "tests/support/data/random.h"
#include "tests/support/process/child_process.h"

namespace kvm::test {

// What exporter number `number` holds in a block whose generation is `generation`.
Content ExporterContent(std::uint32_t number, std::uint32_t block, std::uint64_t generation);

struct ExporterOptions {
  std::string socket = {};
  std::uint32_t number = 0;  // below 4096
  int ordinal = 0;
  layout::HandleKind kind = layout::HandleKind::kCudaVmmFd;
  std::uint32_t blocks = 2048;
  std::uint64_t block_bytes = 64 << 10;
  bool rewrites = true;  // false: publishes everything once and keeps still
};

// Prints "ready" once everything has been published once. Ends when its input closes; then it
// prints how many blocks it has rewritten.
ChildProcess StartExporter(const ExporterOptions& options);

struct ImporterCounts {
  std::uint64_t validated = 0;
  std::uint64_t wrong = 0;     // of the validated ones: must be 0
  std::uint64_t rejected = 0;  // failed their validation
  std::uint64_t caught = 0;    // of the rejected ones, those that were in fact wrong
};

// Imports random blocks of the exporters that `worker` has mapped. The worker's region has as many
// blocks as one round takes.
class RandomImporter {
 public:
  RandomImporter(GpuWorker& worker, std::uint64_t seed) : worker_(worker), random_(seed) {}
  // One round: up to `batch` blocks of one peer. False: no peer is mapped.
  bool Round(std::uint32_t batch, const ImportOptions& options = {});
  // A round with one import that stands still between its first check and its copy until the owner,
  // which rewrites, has written its first block anew: that copy is wrong for certain. `checked`: by
  // libkvclient; else it imports without the check of the generations. False: nothing was copied,
  // since no block was found or the first one was stale before.
  bool RoundAcrossRewrite(std::uint32_t batch, bool checked);
  const ImporterCounts& counts() const { return counts_; }

 private:
  struct Wanted {
    std::shared_ptr<PeerMapping> source;
    std::vector<Content> contents;
  };
  // Blocks of one exporter as they are now; nothing: no peer is mapped.
  std::optional<Wanted> Choose(std::uint32_t batch);
  void Count(const std::vector<std::size_t>& valid, const std::vector<std::size_t>& sizes, const std::vector<PatternBlock>& expected);

  GpuWorker& worker_;
  Random random_;
  ImporterCounts counts_;
};

// An importer on a GPU. Prints "ready" after its first validated block; ends when its input closes,
// with kImporterFoundWrongBytes as soon as it has found any.
ChildProcess StartImporter(const std::string& socket, std::uint32_t number, int ordinal);
inline constexpr int kImporterFoundWrongBytes = 3;

}  // namespace kvm::test
