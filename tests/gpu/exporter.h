// A second process that owns GPU regions, for tests and benchmarks of importing.
//
// The importer starts it from its own binary (`binary --child gpu_exporter FD`) and talks to it
// over a socket pair: one command, one reply, descriptors with the reply. Region contents:
// tests/gpu/pattern.h, the tag being the block's number; generations are 2 once open.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/memory_backend.h"
#include "kvm/geometry.h"
#include "proto/base/peer_fd.h"
#include "proto/base/unique_fd.h"

namespace kvm::test {

struct ExportOptions {
  int ordinal = 0;
  layout::HandleKind kind = layout::HandleKind::kCudaVmmFd;
  Geometry geometry;
  std::vector<std::uint64_t> segment_bytes;
  bool one_allocation = false;  // cuda_ipc: all segments are ranges of one cudaMalloc
  bool fill = true;
};

// What a peer learns of a region through kvmd.
struct ExportedRegion {
  PeerOrigin origin;
  std::vector<SegmentHandle> segments;
  PeerGenerations generations;
  UniqueFd generation_fd;  // to map the table again
};

class ExporterProcess {
 public:
  ExporterProcess();   // starts it
  ~ExporterProcess();  // ends it
  ExporterProcess(const ExporterProcess&) = delete;
  ExporterProcess& operator=(const ExporterProcess&) = delete;

  [[nodiscard]] Result<ExportedRegion> Open(const ExportOptions& options);
  // Rewrites random batches of the region's blocks as fast as it can, from then on.
  void StartRewriting();
  std::uint64_t StopRewriting();  // blocks rewritten
  // Writes the given blocks anew, each with its next generation.
  void Rewrite(const std::vector<std::uint32_t>& blocks);
  // Frees the region's cudaMalloc memory, allocates as much again and fills it (generation 4);
  // segment 0's new handle and the allocation's name.
  Result<std::string> Reallocate(std::uint64_t& allocation);
  // Runs matrix products for a while; TFLOP/s, 0 if cuBLAS can't be loaded.
  double Gemm(double seconds);
  // Ends it with SIGKILL.
  void Kill();

 private:
  std::vector<PeerFd> Call(const std::string& command, std::string& reply);

  UniqueFd socket_;
  pid_t pid_ = -1;
};

// The process itself; `socket` is its end. Returns its exit code.
int RunExporter(int socket);

// The number of usable GPUs; 0 with the reason in `why`.
int UsableGpus(std::string& why);

}  // namespace kvm::test
