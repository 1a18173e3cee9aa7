// bench import on GPUs: a peer process on one GPU, this process on another one, through kvmd and
// libkvclient.
#pragma once

#include "client/kvctl/bench/bench.h"
#include "client/kvctl/workload/pool_memory.h"

namespace kvm::ctl {

// Measures every row in one run. `memory` has at least one GPU: the first is the exporter's, the
// second the importer's. Rows that need two GPUs say so if there is only one.
[[nodiscard]] Result<BenchReport> BenchGpuImport(const CommonOptions& common, const BenchOptions& options, const PoolMemory& memory);

// The goals of the rows are for imports of this many bytes.
inline constexpr std::uint64_t kGoalBytes = std::uint64_t{1} << 30;
// `bytes` of a run is a multiple of it: the smallest row has 1/64 of `bytes`, in blocks of 1 MiB.
inline constexpr std::uint64_t kGpuBytesStep = std::uint64_t{64} << 20;

}  // namespace kvm::ctl
