// What the rows of the import benchmark share: an exporter process, its pool mapped here, a
// destination pool of the same size, timing, and a report.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cuda/devices.h"
#include "tests/gpu/exporter.h"
#include "tests/support/data/random.h"

namespace kvm::bench {

inline constexpr std::uint64_t kKiB = 1 << 10, kMiB = 1 << 20, kGiB = 1 << 30;
inline constexpr std::uint64_t kPoolBytes = 4 * kGiB;
inline constexpr std::uint32_t kSmallBlocks = kPoolBytes / (64 * kKiB);  // generations of the pool

// Ends the program with the error's text.
[[noreturn]] void Fail(const std::string& what);
template <class T>
T Must(Result<T> result) {
  if (!result) Fail(result.error().ToString());
  return std::move(*result);
}

struct Row {
  std::string what;
  double value = 0.0;
  std::string unit;
  double reach = 0.0;  // 0: only measured
  bool at_most = false;
  std::string note;
};

class Report {
 public:
  void Add(Row row);
  void Print() const;
  std::string Json(const std::string& machine) const;

 private:
  std::vector<Row> rows_;
};

// A block of `chunks` chunks, each in its own plane: [chunks, blocks, chunk_bytes].
Geometry Planes(std::uint64_t pool_bytes, std::uint64_t block_bytes, std::uint64_t chunk_bytes);

// A pool that an exporter process owns; may be mapped several times.
struct ExportedPool {
  PeerOrigin origin;
  std::uint64_t bytes = 0;
  std::string handle;
  std::uint64_t handle_offset = 0, allocation = 0, allocation_bytes = 0;
  UniqueFd fd;           // cuda_vmm_fd
  UniqueFd generations;  // of the generation table
};
ExportedPool OpenPool(test::ExporterProcess& exporter, int ordinal, layout::HandleKind kind);

// One importing GPU with a peer's pool mapped.
class Importer {
 public:
  Importer(int ordinal, const ExportedPool& pool);
  Importer(const Importer&) = delete;
  Importer& operator=(const Importer&) = delete;
  ~Importer();

  // Random blocks of a geometry over the pool, `bytes` in all.
  std::vector<ImportBlock> Scattered(const Geometry& geometry, std::uint64_t bytes);
  static std::vector<ImportBlock> Adjacent(const Geometry& geometry, std::uint64_t bytes);

  // Median seconds of a whole import as its caller sees it, and of its work on the GPU.
  struct Time {
    double host = 0.0, gpu = 0.0;
  };
  Time Import(const Geometry& geometry, const std::vector<ImportBlock>& blocks, unsigned max_sms = 0, int rounds = 15);
  // The same copy by the same steps, without a look at any generation.
  Time CopyOnly(const Geometry& geometry, const std::vector<ImportBlock>& blocks, int rounds);
  // Sorted seconds of single imports.
  std::vector<double> ImportTimes(const Geometry& geometry, const std::vector<ImportBlock>& blocks, int rounds, unsigned max_sms = 0);
  std::unique_ptr<ImportJob> Start(const CopyPlan& plan, const std::vector<ImportBlock>& blocks, unsigned max_sms,
                                   std::optional<StreamHandle> stream = std::nullopt);
  // Median seconds of the call that starts an import.
  double CallTime(const Geometry& geometry, const std::vector<ImportBlock>& blocks);
  // As Import, for anything queued on stream().
  Time Measure(int rounds, const std::function<void()>& queue);
  Time Contiguous(std::uint64_t bytes, int rounds = 15);

  const std::byte* source() const;
  std::byte* destination() const { return memory->SegmentData(0); }
  cudaStream_t stream() const { return stream_; }

  const int ordinal;
  std::shared_ptr<MemoryBackend> backend;
  std::unique_ptr<PeerMemory> peer;
  PeerGenerations generations;
  std::unique_ptr<LocalMemory> memory;

 private:
  test::Random random_{1};
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

void RunRows(Report& report, int owner, int importer);
enum class TuneDepth { kFixedCosts, kQuick, kFull };
void RunTune(int owner, int importer, TuneDepth depth);

}  // namespace kvm::bench
